"""Which contributions count: the cheap checks that every peer makes in every round."""
