"""Students in the store: published whole, opened verified."""
