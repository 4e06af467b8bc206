"""What a model's own settings ask for, and what is made of it."""
