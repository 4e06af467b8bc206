"""How micro-batches get to the device."""
