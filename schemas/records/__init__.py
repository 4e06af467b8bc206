"""The small JSON objects of a root."""
