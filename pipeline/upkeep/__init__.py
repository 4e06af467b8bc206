"""Upkeep of teacher caches: one module per command of `opd cache`."""
