"""What memory a run's models take, and what this machine has."""
