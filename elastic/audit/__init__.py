"""What a run's evidence says: why somebody's score is what it is, and what another incentive would have made of it."""
