"""Tables of what changes from round to round."""
