"""Inner steps: from tokens to a pseudo-gradient."""
