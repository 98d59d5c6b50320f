"""Who trains on what in a round."""
