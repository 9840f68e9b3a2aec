"""Recommendation: catalogues and their readers, splits, instruction examples, baselines."""
