"""What `benchmarks alarms` is made of: a chat task, and faults that are planted in its runs."""
