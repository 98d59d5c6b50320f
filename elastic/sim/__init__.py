"""A whole swarm in simulated time: the real life of every peer over a network and disks that fail on purpose."""
