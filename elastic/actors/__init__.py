"""The only room that imports Ray: plain classes become actors here, and nowhere else."""
