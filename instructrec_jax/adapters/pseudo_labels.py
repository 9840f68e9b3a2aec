"""Losses of examples without labels: what one view of them says is what another view learns."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.arrays import Array

Method = Literal["self_training", "fixmatch", "uda", "pi_model"]
THRESHOLDS: dict[Method, float] = {"self_training": 0.0, "fixmatch": 0.95, "uda": 0.8}  # of the papers


@dataclass(frozen=True)
class Marginals:
    """Running averages over the predictions for texts without labels, and over labels.

    Attributes:
      predicted: float32 [classes], mean probability of each class.
      confidence: float32 scalar, mean of the largest probability.
      labeled: float32 [classes], share of each label among labeled examples.
    """

    predicted: Array
    confidence: Array
    labeled: Array


@dataclass(frozen=True)
class Learned:
    """What a view learns; sums over decisions, each with its weight w.

    Attributes:
      loss: Σ w m ℓ, with m = 1 where the decision counts, else 0.
      used: Σ w m.
      known: Σ w m over decisions whose label is known.
      right: Σ w m over those whose pseudo-label is that label.
      threshold: Σ w τ.
    """

    loss: Array
    used: Array
    known: Array
    right: Array
    threshold: Array


def learned(
    method: Method,
    weak: SoftOutputs,
    strong: SoftOutputs,
    *,
    threshold: float = 0.0,
    temperature: float = 1.0,
    marginals: Marginals | None = None,
    align: bool = False,
    per_class: bool = False,
) -> Learned:
    """What the outputs z of one view learn from those of the other, t, which have no gradient.

        p = softmax(t), with `align` p · labeled / predicted, normalized;  q = softmax(z);  m = [max p ≥ τ]
        self_training, fixmatch:  ℓ = -log q_ŷ,  ŷ = argmax p
        uda:                      ℓ = KL(p̂ ‖ q),  p̂ = p^(1/T), normalized
        pi_model:                 ℓ = mean over classes of (p - q)², or (t - z)² of numbers;  m = 1

    Of independent labels, each is a decision between two classes, and the mean over labels counts. With `per_class`,
    τ = confidence · predicted_ŷ / max predicted: hard classes need less (FreeMatch), and `threshold` has no effect.

    Sources: pseudo-labels, Lee 2013, and those of a noisy student, Xie et al. 2020 (self_training); Sohn et al. 2020,
    "FixMatch", equation 4; Xie et al. 2020, "Unsupervised Data Augmentation", section 2.2 with confidence mask and
    sharpening; Laine & Aila 2017, "Temporal Ensembling", algorithm 1, where the gradient flows into one view only,
    which halves its expectation, so that `weight` takes the factor; alignment: Berthelot et al. 2020, "ReMixMatch",
    section 3.1; thresholds by class: Wang et al. 2023, "FreeMatch", equations 5 to 8 (their fairness loss is left out).
    """
    weights = jnp.asarray(weak.weights, jnp.float32)
    if weak.kind == "numbers":
        each = jnp.square(strong.logits() - jax.lax.stop_gradient(weak.logits()))[..., 0]
        return _summed(weights, each, jnp.ones_like(each), None, None, jnp.zeros_like(each))
    log_p, log_q = log_shares(weak), jax.nn.log_softmax(class_logits(strong))
    if align:
        assert marginals is not None
        log_p = jax.nn.log_softmax(log_p + jnp.log(marginals.labeled + 1e-6) - jnp.log(marginals.predicted + 1e-6))
    p, guess = jnp.exp(log_p), log_p.argmax(-1)
    least: Array = jnp.full(guess.shape, threshold, jnp.float32)
    if per_class:
        assert marginals is not None
        least = (marginals.confidence * marginals.predicted / jnp.max(marginals.predicted))[guess]
    used = (p.max(-1) >= least).astype(jnp.float32)
    if method == "pi_model":
        each, used = jnp.square(p - jnp.exp(log_q)).mean(-1), jnp.ones_like(used)
    elif method == "uda":
        sharp = jax.nn.log_softmax(log_p / temperature)
        each = jnp.sum(jnp.exp(sharp) * (sharp - log_q), -1)
    else:
        each = -jnp.take_along_axis(log_q, guess[..., None], -1)[..., 0]
    if weak.kind == "labels":
        weights = jnp.broadcast_to(weights[..., None] / guess.shape[-1], guess.shape)
    return _summed(weights, each, used, guess, true_classes(weak), least)


def _summed(
    weights: Array, each: Array, used: Array, guess: Array | None, truth: Array | None, threshold: Array
) -> Learned:
    counted = weights * used
    known = jnp.zeros(()) if truth is None else counted * (truth >= 0)
    right = jnp.zeros(()) if truth is None or guess is None else known * (truth == guess)
    return Learned(*map(jnp.sum, (counted * each, counted, known, right, weights * threshold)))


def class_logits(outputs: SoftOutputs) -> jax.Array:
    """float32 [..., classes]; of independent labels [..., labels, 2]: (z, 0) for with and without the label."""
    z = outputs.logits()
    return jnp.stack([z, jnp.zeros_like(z)], -1) if outputs.kind == "labels" else z


def log_shares(outputs: SoftOutputs) -> jax.Array:
    """log p of `class_logits`, without gradient."""
    return jax.lax.stop_gradient(jax.nn.log_softmax(class_logits(outputs)))


def true_classes(outputs: SoftOutputs) -> jax.Array | None:
    """int32 [...] or [..., labels]: the right class of each decision, -1 where it is unknown; None: all are."""
    if outputs.targets is None:
        return None
    targets = jnp.asarray(outputs.targets).astype(jnp.int32)
    return jnp.where(targets < 0, -1, 1 - targets) if outputs.kind == "labels" else targets
