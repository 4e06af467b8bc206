"""What the benchmarks share: measuring, machines, inputs."""
