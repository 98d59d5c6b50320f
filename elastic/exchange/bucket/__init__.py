"""A bucket of one's own beside the swarm, for thin uplinks."""
