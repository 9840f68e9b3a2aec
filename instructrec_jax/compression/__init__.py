"""Smaller networks from tuned ones: quantization."""
