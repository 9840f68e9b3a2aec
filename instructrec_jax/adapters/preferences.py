"""Losses over the answers of one prompt, of which the first is preferred.

With π the log-probability of an answer under the network, ρ that under the reference network, β a factor, w the
preferred answer and l the others:

    dpo    −log σ(−log Σ_l exp(β (π_l − ρ_l) − β (π_w − ρ_w)))
           One other answer: −log σ(β (π_w − ρ_w) − β (π_l − ρ_l)), Rafailov et al., 2023, "Direct Preference
           Optimization", equation 7. Several: Chen et al., 2024, "On Softmax Direct Preference Optimization for
           Recommendation", equation 12.
    ipo    mean over l of ((π_w − ρ_w) − (π_l − ρ_l) − 1 / 2β)², Azar et al., 2024, "A General Theoretical Paradigm to
           Understand Learning from Human Preferences", equation 17, with means over tokens, as in TRL
    orpo   −π_w + β · mean over l of −log σ(logit(e^π_w) − logit(e^π_l)) with means over tokens and
           logit(p) = log(p / (1 − p)), Hong et al., 2024, "ORPO: Monolithic Preference Optimization without Reference
           Model", equations 6 and 7
"""

from typing import get_args

import jax
import jax.numpy as jnp

from instructrec_jax.adapters.adapter_config import PreferenceLoss
from instructrec_jax.arrays import Array

LOSSES = get_args(PreferenceLoss)


def has_reference(kind: PreferenceLoss) -> bool:
    """Whether the loss compares with a reference network."""
    return kind != "orpo"


def preference_losses(
    kind: PreferenceLoss, sums: Array, tokens: Array, reference: Array | None, present: Array, beta: float
) -> jax.Array:
    """The loss of each prompt, float32 [prompts].

    Args:
      sums: float [prompts, answers], log-probabilities of whole answers, the preferred one first.
      tokens: [prompts, answers], the tokens that they are sums over.
      reference: the same of the reference network; None for orpo.
      present: bool [prompts, answers], False where a prompt has fewer answers; at least two are True.
      beta: a positive factor, see the module.
    """
    sums, others = jnp.asarray(sums), present[:, 1:]
    if kind == "dpo":
        assert reference is not None
        rewards = beta * (sums - reference)
        return jax.nn.softplus(jax.nn.logsumexp(jnp.where(others, rewards[:, 1:] - rewards[:, :1], -jnp.inf), axis=1))
    means = sums / jnp.maximum(tokens, 1)
    count = others.sum(1)
    if kind == "ipo":
        assert reference is not None
        moved = means - reference / jnp.maximum(tokens, 1)
        apart = jnp.square(moved[:, :1] - moved[:, 1:] - 1 / (2 * beta))
        return jnp.where(others, apart, 0).sum(1) / count
    odds = means - jnp.log1p(-jnp.exp(jnp.minimum(means, -1e-6)))  # a probability of 1 has no odds
    pairs = jax.nn.softplus(odds[:, 1:] - odds[:, :1])
    return -means[:, 0] + beta * jnp.where(others, pairs, 0).sum(1) / count
