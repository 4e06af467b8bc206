"""The outcome of a run: a model folder with its card, and the scores as a dataset with theirs."""
