"""The configuration of a run: one module per table of the TOML."""
