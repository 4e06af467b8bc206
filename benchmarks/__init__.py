"""What opd costs, measured against the same work without it; `python -m benchmarks` lists them."""
