"""What a response says of each of its tokens: advantages, ratios, weights. Pure."""
