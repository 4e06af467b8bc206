"""Losses over the teacher's support and tail. Pure."""
