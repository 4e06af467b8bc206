"""Functions that grade a response."""
