"""Beam search with a length penalty, as `transformers` defines it (num_beams, early_stopping=False).

Each prompt has `beams` rows. A finished answer moves from its row to a list of the `beams` best finished ones, scored
by log-probability / tokens ** length_penalty (Wu et al., 2016, without its constant). A prompt is done when its best
running answer, scored at its present length, is no better than its worst finished one.
"""

import jax
import jax.numpy as jnp

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
        prompts, beams = len(state["done"]), self.structure.beams
        tokens = jnp.full((prompts, beams, room), self.rules.pad, jnp.int32)
        # all beams start equal: only the first may be continued, otherwise all would stay equal
        scores = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, NEVER), (prompts, beams))

        def repeat(x: jax.Array, axis: int = 0) -> jax.Array:
            return jnp.repeat(x, beams, axis=axis) if x.ndim else x

        cache = {name: repeat(x) for name, x in state["cache"].items() if name != "layers"}
        cache["layers"] = jax.tree.map(lambda x: repeat(x, 1), state["cache"]["layers"])
        return state | {name: repeat(state[name]) for name in ("position", "seen") if name in state} | {
            "cache": cache,
            "tokens": tokens,
            "scores": scores,
            "finished_tokens": tokens,
            "finished_lengths": jnp.zeros((prompts, beams), jnp.int32),
            "finished_scores": jnp.full((prompts, beams), NEVER, jnp.float32),
            "finished": jnp.zeros((prompts, beams), bool),
        }  # fmt: skip

    def advance(self, state: State, logits: jax.Array) -> State:
        """Extends the best `beams` answers of every prompt by one token and moves ended ones to the finished list."""
        prompts, beams, room = state["tokens"].shape
        step, vocab = state["count"], logits.shape[-1]
        weight = (step + 1).astype(jnp.float32) ** state["length_penalty"]  # of an answer that the chosen token ends
        logits = logits if len(logits) == prompts * beams else jnp.repeat(logits, beams, axis=0)
        log_probs = adjust(jax.nn.log_softmax(logits), state, self.rules)
        totals = (log_probs.reshape(prompts, beams, vocab) + state["scores"][..., None]).reshape(prompts, -1)

        # enough candidates that `beams` of them continue even if every beam ranks all end tokens highest
        candidates = min(max(2, 1 + len(self.rules.eos)) * beams, totals.shape[-1])
        totals, index = jax.lax.top_k(totals, candidates)
        parent, chosen = index // vocab, (index % vocab).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice(_pick(state["tokens"], parent), chosen[..., None], (0, 0, step))
        ends = jnp.isin(chosen, jnp.array(self.rules.eos, jnp.int32)) | (step + 1 >= state["limit"])

        # running answers
        scores, going = jax.lax.top_k(totals + ends * NEVER, beams)
        parent, last = _pick(parent, going), _pick(chosen, going)
        running = {"tokens": _pick(tokens, going), "scores": scores, "last": last.reshape(-1)}

        # ended answers: only those among the best `beams` candidates count
        ending = ends & (jnp.arange(candidates) < beams)
        new_scores = totals / weight + (state["done"][:, None] | ~ending) * NEVER
        finished_scores, best = jax.lax.top_k(jnp.concatenate([state["finished_scores"], new_scores], 1), beams)

        def merge(old: jax.Array, new: jax.Array) -> jax.Array:
            return _pick(jnp.concatenate([old, new], axis=1), best)

        lengths = jnp.full(ending.shape, step + 1, jnp.int32)
        finished = merge(state["finished"], ending)
        worst = jnp.where(finished, finished_scores.min(-1, keepdims=True), NEVER)
        improvable = scores[:, :1] / weight > worst

        rows = (jnp.arange(prompts)[:, None] * beams + parent).reshape(-1)
        kept = {"cache": self._reorder(state["cache"], rows)}
        if "seen" in state:
            kept["seen"] = state["seen"][rows].at[jnp.arange(len(rows)), running["last"]].set(True)
        return state | running | kept | {
            "finished": finished,
            "finished_scores": finished_scores,
            "finished_tokens": merge(state["finished_tokens"], tokens),
            "finished_lengths": merge(state["finished_lengths"], lengths),
            "done": state["done"] | ~improvable.any(-1),
            "count": step + 1,
        }  # fmt: skip

    @staticmethod
    def _reorder(cache: State, rows: jax.Array) -> State:
        # the filled positions and the encoded text are the same for all beams of a prompt
        def take(layers: State) -> State:
            return {name: x if name.startswith("encoded") else x[:, rows] for name, x in layers.items()}

        return cache | {"layers": {block: take(layers) for block, layers in cache["layers"].items()}}

    def answers(self, state: State) -> tuple[jax.Array, jax.Array]:
        """The best answer of each prompt: int32 (tokens [prompts, room], token counts [prompts])."""
        return state["finished_tokens"][:, 0], state["finished_lengths"][:, 0]
