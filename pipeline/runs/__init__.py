"""One run: what it is, its units of work, where it stands, whether it goes on."""
