"""What a round's objective is: the configuration's, with one's own loss."""
