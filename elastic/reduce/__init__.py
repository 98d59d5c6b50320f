"""Reducers: what makes a pseudo-gradient small enough for the internet."""
