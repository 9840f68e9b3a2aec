"""Choice of the next token: penalties, forced and suppressed tokens, sampling.

Every function takes scores float32 [rows, vocab] (logits or log-probabilities) and matches the logits processor of the
same name in `transformers`; `adjust` and `warp` apply them in the same order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from instructrec_jax.backbones.decoder import DecoderCache
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules

Scalar = float | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What decoding carries from token to token.

    Attributes:
      cache: the network's, of an encoder–decoder an `EncoderDecoderCache`.
      arrays: by name: "count", an int32 scalar, the number of tokens chosen so far; "limit", its maximum; "done", bool
        [prompts]; "broken", bool [prompts], whether the logits were NaN; "last", int32 [rows], the tokens chosen last;
        "position", int32 [rows], of the first chosen token; "numbers", int32 [prompts]; the numbers of
        `GenerationConfig.scalars` and "seed"; with a repetition penalty "seen", bool [rows, vocab], the tokens that
        occurred; and the search's own.
    """

    cache: DecoderCache
    arrays: dict[str, jax.Array]


def _column(value: Scalar) -> jax.Array:
    """A number for all rows, or one for each [rows], in a form that goes with scores [rows, vocab]."""
    return jnp.asarray(value)[..., None]


def penalize_repetition(scores: jax.Array, seen: jax.Array, penalty: Scalar) -> jax.Array:
    """Lowers the scores of tokens that occurred (Keskar et al., 2019, "CTRL"). seen: bool [rows, vocab]."""
    penalty = _column(penalty)
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: jax.Array, k: int) -> jax.Array:
    """Sets all but the k largest scores to -inf; ties with the k-th stay."""
    smallest = jax.lax.top_k(scores, min(k, scores.shape[-1]))[0][:, -1:]
    return jnp.where(scores < smallest, -jnp.inf, scores)


def keep_top_p(scores: jax.Array, p: Scalar, order: jax.Array | None = None) -> jax.Array:
    """Sets all but the fewest tokens with a total probability of at least p to -inf (Holtzman et al., 2020).

    `order`: int32 [rows, vocab], the tokens by score, the likeliest last, if they are sorted already.
    """
    if order is None:
        order = jnp.argsort(scores, axis=-1, stable=True)
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1), axis=-1), axis=-1)
    remove = (cumulative <= 1 - _column(p)).at[:, -1].set(False)
    rows = jnp.arange(len(scores))[:, None]
    return jnp.where(jnp.zeros_like(remove).at[rows, order].set(remove), -jnp.inf, scores)


def keep_min_p(scores: jax.Array, p: Scalar) -> jax.Array:
    """Sets tokens less than p times as likely as the likeliest to -inf (Nguyen et al., 2024)."""
    probabilities = jax.nn.softmax(scores, axis=-1)
    return jnp.where(probabilities < _column(p) * probabilities.max(-1, keepdims=True), -jnp.inf, scores)


def guided(logits: jax.Array, scale: Scalar) -> jax.Array:
    """Classifier-free guidance (Ho & Salimans, 2022): float32 [rows, vocab], b + scale · (a − b).

    Args:
      logits: float32 [2 · rows, vocab]: of each answer a, with its prompt, then b, with a blank one.
      scale: 1 + w in the paper's terms; 1 gives a.
    """
    with_prompt, without = logits[::2], logits[1::2]
    return without + scale * (with_prompt - without)


def adjust(scores: jax.Array, arrays: Mapping[str, jax.Array], rules: TokenRules) -> jax.Array:
    """Applies the rules common to greedy search, sampling and beam search.

    `arrays`: see `State`; "count", "limit" and "repetition_penalty" are scalars, or [rows].
    """
    tokens = jnp.arange(scores.shape[-1])
    if "seen" in arrays:
        scores = penalize_repetition(scores, arrays["seen"], arrays["repetition_penalty"])

    def force(scores: jax.Array, chosen: tuple[int, ...], when: jax.Array) -> jax.Array:
        only = jnp.where(jnp.isin(tokens, jnp.array(chosen)), 0.0, -jnp.inf)
        return jnp.where(_column(when), only, scores)

    for place, token in enumerate(rules.forced_first):
        scores = force(scores, (token,), arrays["count"] == place)
    if rules.forced_last:
        scores = force(scores, rules.forced_last, arrays["count"] == arrays["limit"] - 1)
    if rules.suppressed:
        scores = jnp.where(jnp.isin(tokens, jnp.array(rules.suppressed)), -jnp.inf, scores)
    if rules.suppressed_first:
        suppressed = jnp.isin(tokens, jnp.array(rules.suppressed_first)) & _column(
            arrays["count"] == len(rules.forced_first)
        )
        scores = jnp.where(suppressed, -jnp.inf, scores)
    return scores


def log_likelihood(logits: jax.Array, chosen: jax.Array) -> jax.Array:
    """float32 [rows]: the network's log-probability of the chosen tokens, int32 [rows], before penalties and rules."""
    return jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)


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

    The sample depends on (seed, number of the prompt, step) alone, never on the other rows of the batch. `seed` and
    `step` are scalars, or [rows].
    """

    def one(seed: jax.Array, number: jax.Array, step: jax.Array, row: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)
        return jax.random.categorical(key, row)

    by_row = jnp.ndim(seed) == 1
    return jax.vmap(one, (0 if by_row else None, 0, 0 if by_row else None, 0))(seed, numbers, step, scores).astype(
        jnp.int32
    )


def seen_tokens(tokens: jax.Array, valid: jax.Array, vocab_size: int) -> jax.Array:
    """bool [rows, vocab]: the tokens that occur in `tokens` [rows, length] where `valid` [rows, length] is true."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocab_size), bool).at[rows, tokens].max(valid)


def choose(logits: jax.Array, arrays: Mapping[str, jax.Array], rules: TokenRules) -> jax.Array:
    """The next token of each row, int32 [rows], chosen as `Sampling` chooses it, where each row has its own settings.

    Args:
      logits: float32 [rows, vocab].
      arrays: [rows] each: "active", bool, whether the row's token counts; the numbers of `GenerationConfig` (top_k is 0
        for None); "count", "limit", "seed", "numbers" as in `State`; and "seen", bool [rows, vocab].
    """
    scores = adjust(logits, arrays, rules)
    samples = arrays["active"] & (arrays["temperature"] > 0)

    def sampled(scores: jax.Array) -> jax.Array:
        sorts = samples & ((arrays["top_k"] > 0) | (arrays["top_p"] < 1))
        warped = scores / _column(jnp.where(samples, arrays["temperature"], 1.0))
        warped = jax.lax.cond(sorts.any(), partial(_keep_top, arrays), lambda scores: scores, warped)
        warped = jnp.where(_column(arrays["min_p"] > 0), keep_min_p(warped, arrays["min_p"]), warped)
        drawn = draw(warped, arrays["seed"], arrays["numbers"], arrays["count"])
        return jnp.where(samples, drawn, greedy(scores))

    def greedy(scores: jax.Array) -> jax.Array:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)

    return jax.lax.cond(samples.any(), sampled, greedy, scores)


def _keep_top(arrays: Mapping[str, jax.Array], scores: jax.Array) -> jax.Array:
    """`keep_top_k` and then `keep_top_p`, with one sort: what the first removes stays in front of all that it keeps."""
    vocab, k, p = scores.shape[-1], arrays["top_k"], arrays["top_p"]
    order = jnp.argsort(scores, axis=-1, stable=True)
    place = jnp.take_along_axis(order, jnp.clip(vocab - k, 0, vocab - 1)[:, None], axis=-1)
    smallest = jnp.take_along_axis(scores, place, axis=-1)
    scores = jnp.where(_column(k > 0) & (scores < smallest), -jnp.inf, scores)
    return jnp.where(_column(p < 1), keep_top_p(scores, p, order), scores)


class Sampling:
    """Greedy search and sampling: each row of the network is one answer, or, with guidance, each pair of rows."""

    def __init__(self, structure: GenerationConfig, rules: TokenRules):
        self.structure, self.rules = structure, rules

    def begin(self, state: State, room: int) -> State:
        rows = len(state.arrays["done"])
        tokens = jnp.full((rows, room), self.rules.pad, jnp.int32)
        new = {"tokens": tokens, "log_probs": jnp.zeros((rows, room)), "lengths": jnp.zeros(rows, jnp.int32)}
        return State(state.cache, state.arrays | new)

    def advance(self, state: State, logits: jax.Array) -> State:
        """Chooses the next token of every row that is not done."""
        arrays = state.arrays
        scores, copies = logits, 1
        if self.structure.guidance_scale != 1:
            scores, logits, copies = guided(logits, arrays["guidance_scale"]), logits[::2], 2
        scores = adjust(scores, arrays, self.rules)
        if self.structure.temperature > 0:
            scores = warp(scores, self.structure, arrays)
            chosen = draw(scores, arrays["seed"], arrays["numbers"], arrays["count"])
        else:
            chosen = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        done = arrays["done"]
        chosen = jnp.where(done, self.rules.pad, chosen)
        likelihood = log_likelihood(logits, chosen)
        new = {
            "last": jnp.repeat(chosen, copies),
            "tokens": jax.lax.dynamic_update_slice(arrays["tokens"], chosen[:, None], (0, arrays["count"])),
            "log_probs": jax.lax.dynamic_update_slice(arrays["log_probs"], likelihood[:, None], (0, arrays["count"])),
            "lengths": arrays["lengths"] + ~done,
            "done": done | jnp.isin(chosen, jnp.array(self.rules.eos, jnp.int32)),
            "count": arrays["count"] + 1,
        }
        if "seen" in arrays:
            new["seen"] = arrays["seen"].at[jnp.arange(len(chosen)), chosen].set(True)
        return State(state.cache, arrays | new)

    def answers(self, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
        return state.arrays["tokens"], state.arrays["lengths"], state.arrays["log_probs"]
