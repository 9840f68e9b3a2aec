"""Losses of the next item against sampled items, [...] per position, in float32."""

import jax
import jax.numpy as jnp

from instructrec_jax.arrays import Array


def sampled_softmax(logits: jax.Array) -> jax.Array:
    """−log softmax(logits)[0]: logits float [..., 1 + negatives], the positive item first."""
    return jax.nn.logsumexp(logits, -1) - logits[..., 0]


def sampled_sigmoid(scores: jax.Array, beta: float = 1.0) -> jax.Array:
    """−β log σ(s₊) − Σ log(1 − σ(s₋)) of scores float [..., 1 + negatives], the positive item first.

    β = 1 is the loss of SASRec (Kang & McAuley, 2018); another one (see `gbce_power`) gives that of gSASRec (Petrov &
    Macdonald, 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative Sampling"),
    which is divided by 1 + negatives there.
    """
    return beta * jax.nn.softplus(-scores[..., 0]) + jnp.sum(jax.nn.softplus(scores[..., 1:]), -1)


def gbce_power(negatives: int, items: int, calibration: float) -> float:
    """β = α (t (1 − 1/α) + 1/α), with the share α of the other items that are drawn (gSASRec).

    t, `calibration`, is 0 for β = 1 (SASRec's loss), and 1 for scores whose σ is the probability of the item.
    """
    share = min(1.0, negatives / (items - 1))
    return share * (calibration * (1 - 1 / share) + 1 / share)


def scores_of(queries: jax.Array, table: jax.Array, bias: jax.Array | None, items: Array) -> jax.Array:
    """float32 [rows, length, k]: scores of other items at each position.

    Needs memory for k vectors or for a score of every item at each position, whatever is less.

    Args:
        queries: float [rows, length, size].
        table, bias: float [items, size] and float32 [items] or None, of all items.
        items: int32 [rows, length, k].
    """
    if items.shape[-1] * table.shape[1] < len(table):
        scores = jnp.einsum("rlh,rlkh->rlk", queries, table[items], preferred_element_type=jnp.float32)
        return scores if bias is None else scores + bias[items]
    every = jnp.einsum("rlh,nh->rln", queries, table, preferred_element_type=jnp.float32)
    return jnp.take_along_axis(every if bias is None else every + bias, jnp.asarray(items), -1)
