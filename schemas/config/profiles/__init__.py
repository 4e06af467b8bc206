"""Profiles: recommended values that a TOML may name as its `base`."""
