"""What runs a model: one seam, three engines. Token ids in, token ids and numbers out."""
