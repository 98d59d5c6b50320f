"""The run's tokens: where they lie, how they come here, and who is dealt which."""
