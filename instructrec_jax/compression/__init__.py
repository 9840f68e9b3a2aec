"""Smaller networks from tuned ones: quantization, pruning, zeros."""
