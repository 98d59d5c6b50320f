"""A run to look at: one model made from what peers wrote down, and its pictures in a terminal, a file and a page."""
