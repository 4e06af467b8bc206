"""What a teacher says of tokens, as arrays: taken from logits, cut, mixed, compared. Pure."""
