"""What `benchmarks support` needs: two models, and gradients summed over positions."""
