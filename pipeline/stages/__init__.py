"""The four stages and the rounds that they make."""
