"""Sequences that a report looks at, token by token: read, joined with their scores, summed up."""
