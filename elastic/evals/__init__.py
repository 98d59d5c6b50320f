"""How good a model is: tasks that ship with the project, others by name, all through lm-eval."""
