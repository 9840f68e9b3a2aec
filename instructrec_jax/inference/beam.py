"""Beam search with a length penalty, as `transformers` defines it (num_beams, early_stopping=False).

Each prompt has `beams` rows. A finished answer moves from its row to a list of the `beams` best finished ones, scored
by log-probability / tokens ** length_penalty (Wu et al., 2016, without its constant). A prompt is done when its best
running answer, scored at its present length, is no better than its worst finished one.
"""

import jax
import jax.numpy as jnp

from instructrec_jax.backbones.decoder import DecoderCache
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules
from instructrec_jax.inference.sampling import State, adjust

NEVER = -1e9  # score of a forbidden choice; finite, as in transformers, because it is added to scores


def _pick(array: jax.Array, index: jax.Array) -> jax.Array:
    """array [rows, n, ...], index [rows, m] -> [rows, m, ...]."""
    return jax.vmap(lambda a, i: a[i])(array, index)


class BeamSearch:
    """Beam search. The network's rows are [prompts, beams], flattened."""

    def __init__(self, structure: GenerationConfig, rules: TokenRules):
        self.structure, self.rules = structure, rules

    def begin(self, state: State, room: int) -> State:
        arrays, prompts, beams = state.arrays, len(state.arrays["done"]), self.structure.beams
        tokens = jnp.full((prompts, beams, room), self.rules.pad, jnp.int32)
        # all beams start equal: only the first may be continued, otherwise all would stay equal
        scores = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, NEVER), (prompts, beams))

        def repeat(x: jax.Array, axis: int = 0) -> jax.Array:
            return jnp.repeat(x, beams, axis=axis) if x.ndim else x

        # the arrays of layers have the axis of the layers before that of the rows
        cache = jax.tree_util.tree_map_with_path(
            lambda path, x: repeat(x, 1 if path[0] == jax.tree_util.DictKey("layers") else 0), state.cache
        )
        return State(cache, arrays | {name: repeat(arrays[name]) for name in ("position", "seen") if name in arrays} | {
            "tokens": tokens,
            "log_probs": jnp.zeros(tokens.shape),
            "scores": scores,
            "finished_tokens": tokens,
            "finished_log_probs": jnp.zeros(tokens.shape),
            "finished_lengths": jnp.zeros((prompts, beams), jnp.int32),
            "finished_scores": jnp.full((prompts, beams), NEVER, jnp.float32),
            "finished": jnp.zeros((prompts, beams), bool),
        })  # fmt: skip

    def advance(self, state: State, logits: jax.Array) -> State:
        """Extends the best `beams` answers of every prompt by one token and moves ended ones to the finished list."""
        arrays = state.arrays
        prompts, beams, room = arrays["tokens"].shape
        step, vocab = arrays["count"], logits.shape[-1]
        weight = (step + 1).astype(jnp.float32) ** arrays["length_penalty"]  # of an answer that the chosen token ends
        logits = logits if len(logits) == prompts * beams else jnp.repeat(logits, beams, axis=0)
        own = jax.nn.log_softmax(logits)
        totals = (adjust(own, arrays, self.rules).reshape(prompts, beams, vocab) + arrays["scores"][..., None]).reshape(
            prompts, -1
        )

        # enough candidates that `beams` of them continue even if every beam ranks all end tokens highest
        candidates = min(max(2, 1 + len(self.rules.eos)) * beams, totals.shape[-1])
        totals, index = jax.lax.top_k(totals, candidates)
        parent, chosen = index // vocab, (index % vocab).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice(_pick(arrays["tokens"], parent), chosen[..., None], (0, 0, step))
        likelihoods = jnp.take_along_axis(own.reshape(prompts, -1), index, axis=1)
        before = _pick(arrays["log_probs"], parent)
        log_probs = jax.lax.dynamic_update_slice(before, likelihoods[..., None], (0, 0, step))
        ends = jnp.isin(chosen, jnp.array(self.rules.eos, jnp.int32)) | (step + 1 >= arrays["limit"])

        # running answers
        scores, going = jax.lax.top_k(totals + ends * NEVER, beams)
        parent, last = _pick(parent, going), _pick(chosen, going)
        running = {name: _pick(each, going) for name, each in (("tokens", tokens), ("log_probs", log_probs))}
        running |= {"scores": scores, "last": last.reshape(-1)}

        # ended answers: only those among the best `beams` candidates count
        ending = ends & (jnp.arange(candidates) < beams)
        new_scores = totals / weight + (arrays["done"][:, None] | ~ending) * NEVER
        finished_scores, best = jax.lax.top_k(jnp.concatenate([arrays["finished_scores"], new_scores], 1), beams)

        def merge(old: jax.Array, new: jax.Array) -> jax.Array:
            return _pick(jnp.concatenate([old, new], axis=1), best)

        lengths = jnp.full(ending.shape, step + 1, jnp.int32)
        finished = merge(arrays["finished"], ending)
        worst = jnp.where(finished, finished_scores.min(-1, keepdims=True), NEVER)
        improvable = scores[:, :1] / weight > worst

        rows = (jnp.arange(prompts)[:, None] * beams + parent).reshape(-1)
        if "seen" in arrays:
            running["seen"] = arrays["seen"][rows].at[jnp.arange(len(rows)), running["last"]].set(True)
        return State(_reorder(state.cache, rows), arrays | running | {
            "finished": finished,
            "finished_scores": finished_scores,
            "finished_tokens": merge(arrays["finished_tokens"], tokens),
            "finished_log_probs": merge(arrays["finished_log_probs"], log_probs),
            "finished_lengths": merge(arrays["finished_lengths"], lengths),
            "done": arrays["done"] | ~improvable.any(-1),
            "count": step + 1,
        })  # fmt: skip

    def answers(self, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of the best answer of each prompt."""
        arrays = state.arrays
        return arrays["finished_tokens"][:, 0], arrays["finished_lengths"][:, 0], arrays["finished_log_probs"][:, 0]


def _reorder(cache: DecoderCache, rows: jax.Array) -> DecoderCache:
    """The cache with its rows in another order; filled positions and encoded text are equal for a prompt's beams."""

    def take(layers: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: x if name.startswith("encoded") else x[:, rows] for name, x in layers.items()}

    reordered = cache.copy()
    reordered["layers"] = {block: take(layers) for block, layers in cache["layers"].items()}
    return reordered
