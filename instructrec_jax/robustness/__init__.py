"""Behavioral tests of a run: what changed texts, histories and options do to its answers; adversarial search."""
