"""The codec `packed-v1`: the fewest bytes. Pure."""
