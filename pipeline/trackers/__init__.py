"""Trackers: programs of others that show a run, told from its stored records."""
