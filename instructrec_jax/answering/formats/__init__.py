"""Formats of other runtimes, made of an exported HuggingFace folder."""
