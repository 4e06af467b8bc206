"""What each process of the learner trains on next."""
