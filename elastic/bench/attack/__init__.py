"""`elastic bench attack`: bad peers in a real training swarm, and what they come to under each incentive."""
