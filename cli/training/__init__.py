"""Training from the command line: in one process or several, and the check of its objective."""
