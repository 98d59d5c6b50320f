"""Benchmarks that a user can run: everything the README and the docs state, measured on this machine."""
