"""How records and bytes travel between peers."""
