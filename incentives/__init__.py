"""What scores mean: who may contribute, and whose work counts how much. Chosen by name in the run file."""
