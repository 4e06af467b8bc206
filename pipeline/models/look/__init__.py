"""What a model's files say, looked at before any library loads them."""
