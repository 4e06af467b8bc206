"""Bad records and objects of a root."""
