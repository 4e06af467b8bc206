"""Records of a run as frames of figures: one row for each round, one for each step."""
