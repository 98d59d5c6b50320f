"""What only others can tell: whether a peer can be dialled, and how fast its line is."""
