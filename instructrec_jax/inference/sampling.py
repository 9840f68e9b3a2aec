"""Choice of the next token: penalties, forced and suppressed tokens, sampling.

Every function takes scores float32 [rows, vocab] (logits or log-probabilities) and matches the logits processor of the
same name in `transformers`; `adjust` and `warp` apply them in the same order.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules

State = dict[str, Any]
Scalar = float | jax.Array


def penalize_repetition(scores: jax.Array, seen: jax.Array, penalty: Scalar) -> jax.Array:
    """Lowers the scores of tokens that occurred (Keskar et al., 2019, "CTRL"). seen: bool [rows, vocab]."""
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: jax.Array, k: int) -> jax.Array:
    """Sets all but the k largest scores to -inf; ties with the k-th stay."""
    smallest = jax.lax.top_k(scores, min(k, scores.shape[-1]))[0][:, -1:]
    return jnp.where(scores < smallest, -jnp.inf, scores)


def keep_top_p(scores: jax.Array, p: Scalar) -> jax.Array:
    """Sets all but the fewest tokens with a total probability of at least p to -inf (Holtzman et al., 2020)."""
    order = jnp.argsort(scores, axis=-1, stable=True)  # the likeliest last
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1), axis=-1), axis=-1)
    remove = (cumulative <= 1 - p).at[:, -1].set(False)
    rows = jnp.arange(len(scores))[:, None]
    return jnp.where(jnp.zeros_like(remove).at[rows, order].set(remove), -jnp.inf, scores)


def keep_min_p(scores: jax.Array, p: Scalar) -> jax.Array:
    """Sets tokens less than p times as likely as the likeliest to -inf (Nguyen et al., 2024)."""
    probabilities = jax.nn.softmax(scores, axis=-1)
    return jnp.where(probabilities < p * probabilities.max(-1, keepdims=True), -jnp.inf, scores)


def adjust(scores: jax.Array, state: State, rules: TokenRules) -> jax.Array:
    """Applies the rules common to greedy search, sampling and beam search.

    Args:
      state: "count", the number of tokens chosen so far; "limit", the maximum; with a repetition penalty also "seen",
        bool [rows, vocab], the tokens that occurred.
    """
    tokens = jnp.arange(scores.shape[-1])
    if "seen" in state:
        scores = penalize_repetition(scores, state["seen"], state["repetition_penalty"])

    def force(scores: jax.Array, chosen: tuple[int, ...], when: jax.Array) -> jax.Array:
        only = jnp.where(jnp.isin(tokens, jnp.array(chosen)), 0.0, -jnp.inf)
        return jnp.where(when, only, scores)

    first = 0
    if rules.forced_first is not None:
        scores = force(scores, (rules.forced_first,), state["count"] == 0)
        first = 1
    if rules.forced_last:
        scores = force(scores, rules.forced_last, state["count"] == state["limit"] - 1)
    if rules.suppressed:
        scores = jnp.where(jnp.isin(tokens, jnp.array(rules.suppressed)), -jnp.inf, scores)
    if rules.suppressed_first:
        suppressed = jnp.isin(tokens, jnp.array(rules.suppressed_first)) & (state["count"] == first)
        scores = jnp.where(suppressed, -jnp.inf, scores)
    return scores


def warp(scores: jax.Array, structure: GenerationConfig, scalars: Mapping[str, Scalar]) -> jax.Array:
    """Logits of the sampling distribution.

    Args:
      structure: the steps to apply; its temperature is not 0.
      scalars: the steps' numbers.
    """
    scores = scores / scalars["temperature"]
    if structure.top_k is not None:
        scores = keep_top_k(scores, structure.top_k)
    if structure.top_p < 1:
        scores = keep_top_p(scores, scalars["top_p"])
    return keep_min_p(scores, scalars["min_p"]) if structure.min_p > 0 else scores


def draw(scores: jax.Array, seed: jax.Array, numbers: jax.Array, step: jax.Array) -> jax.Array:
    """Samples one token per row, int32 [rows].

    The sample depends on (seed, number of the prompt, step) alone, never on the other rows of the batch.
    """

    def one(number: jax.Array, row: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)
        return jax.random.categorical(key, row)

    return jax.vmap(one)(numbers, scores).astype(jnp.int32)


def seen_tokens(tokens: jax.Array, valid: jax.Array, vocab_size: int) -> jax.Array:
    """bool [rows, vocab]: the tokens that occur in `tokens` [rows, length] where `valid` [rows, length] is true."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocab_size), bool).at[rows, tokens].max(valid)


class Sampling:
    """Greedy search and sampling: each row of the network is one answer."""

    def __init__(self, structure: GenerationConfig, rules: TokenRules):
        self.structure, self.rules = structure, rules

    def begin(self, state: State, room: int) -> State:
        rows = len(state["done"])
        tokens = jnp.full((rows, room), self.rules.pad, jnp.int32)
        return state | {"tokens": tokens, "lengths": jnp.zeros(rows, jnp.int32)}

    def advance(self, state: State, logits: jax.Array) -> State:
        """Chooses the next token of every row that is not done."""
        scores = adjust(logits, state, self.rules)
        if self.structure.temperature > 0:
            scores = warp(scores, self.structure, state)
            chosen = draw(scores, state["seed"], state["numbers"], state["count"])
        else:
            chosen = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        done = state["done"]
        chosen = jnp.where(done, self.rules.pad, chosen)
        new = {
            "last": chosen,
            "tokens": jax.lax.dynamic_update_slice(state["tokens"], chosen[:, None], (0, state["count"])),
            "lengths": state["lengths"] + ~done,
            "done": done | jnp.isin(chosen, jnp.array(self.rules.eos, jnp.int32)),
            "count": state["count"] + 1,
        }
        if "seen" in state:
            new["seen"] = state["seen"].at[jnp.arange(len(chosen)), chosen].set(True)
        return state | new

    def answers(self, state: State) -> tuple[jax.Array, jax.Array]:
        """int32 (tokens [rows, room], token counts [rows])."""
        return state["tokens"], state["lengths"]
