"""What one peer keeps on disk, so that SIGKILL at any moment costs it at most the round in progress."""
