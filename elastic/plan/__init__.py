"""`elastic plan`: what a run will take, before anyone rents anything. Arithmetic only: no torch, no Ray, no network."""
