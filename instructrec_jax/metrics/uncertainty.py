"""Uncertainty of a classifier, from its logits or from the probabilities of several members (draws, or an ensemble)."""

from collections.abc import Sequence

import numpy as np
import scipy


def probabilities(logits: np.ndarray) -> np.ndarray:
    """float64 [..., labels], softmax over the last axis."""
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """−Σ p log p in nats, [..., labels] -> [...]: 0 for a certain label, log(labels) for a uniform distribution."""
    return scipy.special.entr(probabilities).sum(-1)


def mutual_information(members: np.ndarray, weights: Sequence[float] | None = None) -> np.ndarray:
    """Mutual information of label and member, in nats: probabilities [members, ..., labels] -> [...].

    `weights` of the members have the sum 1; None: equal ones.

    The entropy of the mean minus the mean of the entropies: 0 if all members agree, even if each is uncertain
    (Houlsby et al., "Bayesian Active Learning", 2011; Gal & Ghahramani, 2016; Lakshminarayanan et al., 2017).
    """
    mean, entropies = (np.average(each, 0, weights) for each in (members, entropy(members)))
    return np.maximum(entropy(mean) - entropies, 0)


def negative_energy(logits: np.ndarray) -> np.ndarray:
    """logsumexp of the logits, [..., labels] -> [...]: higher for in-distribution texts (Liu et al., 2020)."""
    return scipy.special.logsumexp(np.asarray(logits, np.float64), axis=-1)
