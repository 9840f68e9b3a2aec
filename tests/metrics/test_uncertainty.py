"""Entropies, mutual information and energies against scipy."""

import numpy as np
from scipy.stats import entropy as scipy_entropy

from instructrec_jax.metrics.uncertainty import mutual_information, negative_energy


def test_uncertainty_of_members() -> None:
    rng = np.random.default_rng(0)
    members = rng.dirichlet(np.ones(3), (6, 4))
    expected = scipy_entropy(members.mean(0), axis=-1) - scipy_entropy(members, axis=-1).mean(0)
    np.testing.assert_allclose(mutual_information(members), expected)
    np.testing.assert_allclose(mutual_information(members[:1].repeat(3, 0)), 0, atol=1e-12)
    weights = rng.dirichlet(np.ones(6))
    mean = np.tensordot(weights, members, 1)
    expected = scipy_entropy(mean, axis=-1) - weights @ scipy_entropy(members, axis=-1)
    np.testing.assert_allclose(mutual_information(members, weights.tolist()), expected)
    logits = rng.normal(size=(5, 4))
    np.testing.assert_allclose(negative_energy(logits), np.log(np.exp(logits).sum(-1)))
