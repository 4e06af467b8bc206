"""Kernels and products that the head loss is made of, by device."""
