"""Tables of `[loss]` and of rewards: what stands beside distillation."""
