"""A run in the hands of a Python program: its stages, and what it has stored, as tables."""
