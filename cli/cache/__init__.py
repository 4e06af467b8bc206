"""`opd cache`: upkeep of teacher caches."""
