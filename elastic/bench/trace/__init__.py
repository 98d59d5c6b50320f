"""`elastic bench trace`: stragglers planted in a real swarm, and whether its traces name them."""
