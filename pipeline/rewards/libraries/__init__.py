"""Graders that are made of libraries: each a file that runs in the process of a grader."""
