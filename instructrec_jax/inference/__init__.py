"""Generating text: decoding with a cache, samplers, beam search."""
