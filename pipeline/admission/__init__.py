"""What a run must pass before anything is pinned or sampled."""
