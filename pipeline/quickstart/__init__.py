"""A task, two models and a run from nothing."""
