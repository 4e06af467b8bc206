"""Scores found by token sequence: one cache per scorer, and its index."""
