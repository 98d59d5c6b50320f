"""Models as people use them: the newest anchor of a run, or a folder; text from it, a folder of it."""
