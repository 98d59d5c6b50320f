"""How all peers come to count the same contributions."""
