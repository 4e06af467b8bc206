"""The table `[track]`: programs that show a run."""
