"""The DeepSpeed learner: data, steps, states, export."""
