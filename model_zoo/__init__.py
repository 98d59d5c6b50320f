"""Models and texts that ship with the project; a run file names them as strings."""
