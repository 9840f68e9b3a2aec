"""Metrics: ranking metrics of our own; thin doors to scikit-learn for classification and regression.

Everything here is numpy on the host. Import the module you need (`metrics.ranking`, `metrics.classification`,
`metrics.regression`): scikit-learn takes a second to load and ranking does without it.
"""
