"""Metrics: our own for ranking; thin wrappers of scikit-learn, scipy, seqeval, sacrebleu and rouge-score for the rest.

Everything here is NumPy on the host. Import the module you need (`metrics.ranking`, `metrics.classification`, ...):
scikit-learn takes a second to import, and ranking does not need it.
"""
