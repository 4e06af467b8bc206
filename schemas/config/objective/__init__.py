"""Tables inside `[loss]`: what an objective makes of tokens."""
