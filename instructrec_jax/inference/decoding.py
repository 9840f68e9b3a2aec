"""Decoding with a key–value cache: a prompt is read once (prefill), then a token is added at a time (decode).

Both are compiled, once a shape: prompts are padded on the right to a bucket of lengths, answers have room for a
multiple of `ROOM` tokens, and a batch always has the same number of rows. Parameters stay as they lie on the mesh; rows
are split over its data axes. Which token comes next is decided by a `Sampling` or a `BeamSearch`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from instructrec_jax.data.packing import length_buckets
from instructrec_jax.distributed.launch import fetch, place
from instructrec_jax.distributed.mesh import DeviceMesh, activation_sharding, replicated
from instructrec_jax.inference.beam import BeamSearch
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules
from instructrec_jax.inference.sampling import Sampling, State, seen_tokens

ROOM = 32


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, the end-of-sequence token included.

    `finish` tells why it ended: "eos", "stop" (what was asked to stop it), or "length" (max_new_tokens).
    """

    tokens: list[int]
    finish: str


@dataclass(frozen=True)
class Programs:
    """What is compiled for one way of choosing tokens.

    `prefill(params, prompts, room)` makes a state: the cache, the tokens chosen so far (the first already), and what
    the search needs. `decode(params, state, until)` goes on, on the device, until `until` tokens are chosen or all rows
    are done, and uses up the state it is given. So one program streams token by token, looks for stop texts every few
    tokens, or writes whole answers.
    """

    search: Any
    prefill: Callable[[Any, dict[str, jax.Array], int], State]
    decode: Callable[[Any, State, np.int32], State]


def check_prompts(
    prompts: Sequence[np.ndarray],
    names: Sequence[str],
    config: GenerationConfig,
    *,
    max_length: int,
    encoder_decoder: bool,
) -> None:
    """Refuses prompts that cannot be answered.

    Args:
      prompts: int32 [tokens] each; `names` is what errors call them.
      max_length: tokens that prompt and answer may have together (an encoder–decoder: each of them).

    Raises ValueError for a prompt without tokens, and for one that leaves no room for the answer.
    """
    new = config.max_new_tokens
    for prompt, name in zip(prompts, names, strict=True):
        if len(prompt) == 0:
            raise ValueError(f"{name} has no tokens: there is nothing to answer.")
        total, share = len(prompt) + new, "of both together"
        if encoder_decoder:
            total, share = max(len(prompt), new), "of each"
        if total > max_length:
            raise ValueError(
                f"{name} has {len(prompt):,} tokens and max_new_tokens is {new:,}, but the network reads at most "
                f"{max_length:,} {share}: shorten the prompt, or lower max_new_tokens."
            )


class Decoder:
    """Answers prompts of tokens with a network on a mesh.

    Args:
      graphdef: of a `tasks.base.Model` with a language-model head.
      max_length: tokens that prompt and answer may have together (an encoder–decoder: each of them).
      view: the network -> the part of it with `backbone` and `head`, where it is more than these.
    """

    def __init__(
        self,
        graphdef: Any,
        mesh: DeviceMesh,
        rules: TokenRules,
        *,
        max_length: int,
        encoder_decoder: bool,
        view: Callable[[Any], Any] = lambda model: model,
    ):
        self.graphdef, self.mesh, self.rules, self.view = graphdef, mesh, rules, view
        self.max_length, self.encoder_decoder = max_length, encoder_decoder
        self._programs: dict[GenerationConfig, Programs] = {}

    def programs(self, config: GenerationConfig) -> Programs:
        """The programs of a config, made once for all configs of this structure."""
        structure = config.structure()
        if structure not in self._programs:
            search = (BeamSearch if config.beams > 1 else Sampling)(structure, self.rules)
            self._programs[structure] = Programs(
                search,
                jax.jit(partial(self._prefill, search), static_argnames="room"),
                jax.jit(partial(self._decode, search), donate_argnums=1),
            )
        return self._programs[structure]

    # ---------------------------------------------------------------- on the device

    def _prefill(self, search: Any, params: Any, prompts: dict[str, jax.Array], room: int) -> State:
        model = self.view(nnx.merge(self.graphdef, params))
        tokens, lengths = prompts["tokens"], prompts["lengths"]
        rows, length = tokens.shape
        valid = jnp.arange(length) < lengths[:, None]
        segment_ids, positions = valid.astype(jnp.int32), jnp.where(valid, jnp.arange(length), 0)
        state = {name: x for name, x in prompts.items() if name not in ("tokens", "lengths")}
        state |= {"count": jnp.zeros((), jnp.int32), "broken": jnp.zeros_like(prompts["done"])}
        if self.rules.start is not None:
            encoded = model.backbone.encode(tokens, segment_ids, positions)
            cache = model.backbone.empty_cache(rows, room, length)
            tokens, valid = jnp.full((rows, 1), self.rules.start, jnp.int32), jnp.ones((rows, 1), bool)
            place = jnp.zeros((rows, 1), jnp.int32)
            hidden, cache = model.backbone.decode(tokens, place + 1, place, encoded, segment_ids, cache=cache)
            last, state["position"] = hidden[:, 0], place[:, 0] + 1
        else:
            cache = model.backbone.empty_cache(rows, length + room)
            types = jnp.zeros_like(tokens)
            hidden, cache = model.backbone(tokens, segment_ids, positions, types, cache=cache)
            # only the last place of a prompt goes through the vocabulary-wide head
            last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
            state["position"] = lengths
        logits = model.head(model.backbone, last)
        if search.structure.repetition_penalty != 1:
            state["seen"] = seen_tokens(tokens, valid, logits.shape[-1])
        state = search.begin(state | {"cache": cache}, room)
        return self._constrain(search.advance(_watch(state, logits), logits))

    def _decode(self, search: Any, params: Any, state: State, until: jax.Array) -> State:
        model = self.view(nnx.merge(self.graphdef, params))
        until = jnp.minimum(until, state["limit"])

        def unfinished(state: State) -> jax.Array:
            return (state["count"] < until) & ~state["done"].all()

        def step(state: State) -> State:
            tokens = state["last"][:, None]
            ones = jnp.ones_like(tokens)
            positions = (state["position"] + state["count"] - 1)[:, None]
            if self.encoder_decoder:
                hidden, cache = model.backbone.decode(tokens, ones, positions, cache=state["cache"])
            else:
                hidden, cache = model.backbone(tokens, ones, positions, ones * 0, cache=state["cache"])
            logits = model.head(model.backbone, hidden[:, 0])
            return self._constrain(search.advance(_watch(state | {"cache": cache}, logits), logits))

        return self._constrain(jax.lax.while_loop(unfinished, step, state))

    def _constrain(self, state: State) -> State:
        """Pins rows to the data axes and key heads to the tensor axis, so that a state fits the next call."""

        def pin(path: Any, x: jax.Array) -> jax.Array:
            layers = any(getattr(key, "key", None) == "layers" for key in path)
            axes = (None, "batch", None, "heads", None) if layers else ("batch", None, None)
            return jax.lax.with_sharding_constraint(x, self._sharding(x.shape, axes))

        return jax.tree_util.tree_map_with_path(pin, state)

    def _sharding(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
        return activation_sharding(self.mesh, shape, axes[: len(shape)])

    # ---------------------------------------------------------------- on the host

    def check(self, prompts: Sequence[np.ndarray], names: Sequence[str], config: GenerationConfig) -> None:
        """See `check_prompts`."""
        check_prompts(prompts, names, config, max_length=self.max_length, encoder_decoder=self.encoder_decoder)

    def batches(
        self, prompts: Sequence[np.ndarray], config: GenerationConfig
    ) -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
        """Prompts of about the same length, `batch_size` at a time: (their numbers, the arguments of prefill)."""
        lengths = np.array([len(prompt) for prompt in prompts])
        # the next power of two will do: T5 has no longest text
        buckets = length_buckets(min(self.max_length, 2 ** int(lengths.max()).bit_length()))
        bucket_of = np.searchsorted(buckets, lengths)
        rows = min(config.batch_size, len(prompts))
        for bucket in np.unique(bucket_of):
            members = np.flatnonzero(bucket_of == bucket)
            for first in range(0, len(members), rows):
                chosen = members[first : first + rows]
                yield chosen, self._lay_out([prompts[i] for i in chosen], chosen, rows, int(buckets[bucket]), config)

    def _lay_out(
        self, prompts: list[np.ndarray], numbers: np.ndarray, rows: int, length: int, config: GenerationConfig
    ) -> dict[str, jax.Array]:
        """The arguments of prefill; rows that are left over repeat the first prompt and are done from the start."""
        filled = [*prompts, *[prompts[0]] * (rows - len(prompts))]
        tokens = np.full((rows, length), self.rules.pad, np.int32)
        for row, prompt in enumerate(filled):
            tokens[row, : len(prompt)] = prompt
        arrays = {
            "tokens": tokens,
            "lengths": np.array([len(prompt) for prompt in filled], np.int32),
            "numbers": np.resize(numbers, rows).astype(np.int32),
            "done": np.arange(rows) >= len(prompts),
        }
        laid = {name: place(x, self._sharding(x.shape, ("batch", None))) for name, x in arrays.items()}
        scalars: dict[str, Any] = {name: np.float32(value) for name, value in config.scalars().items()}
        scalars |= {"limit": np.int32(config.max_new_tokens), "seed": np.uint32(config.seed)}
        return laid | {name: place(x, replicated(self.mesh)) for name, x in scalars.items()}

    def answer(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        config: GenerationConfig,
        *,
        every: int | None = None,
        stops: Callable[[int, list[int]], bool] | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Answers prompts (int32 [tokens] each, see `check`), batch by batch: (number of the prompt, answer).

        Args:
          every: tokens between two looks at the answers; None: only at the end.
          stops: stops(number, tokens so far) -> whether this answer shall end here; called at every look.
        """
        programs = self.programs(config)
        limit = config.max_new_tokens
        room = -(-limit // ROOM) * ROOM
        for numbers, arguments in self.batches(prompts, config):
            state = programs.prefill(params, arguments, room)
            stopped: set[int] = set()
            count = 1
            while True:
                tokens, lengths, done = (fetch(x) for x in (*programs.search.answers(state), state["done"]))
                if stops is not None:
                    for row, number in enumerate(numbers):
                        if row not in stopped and stops(int(number), tokens[row, : lengths[row]].tolist()):
                            stopped.add(row)
                    ended = done | np.isin(np.arange(len(done)), list(stopped))
                    if (ended != done).any():
                        state["done"] = place(ended, state["done"].sharding)
                    done = ended
                if fetch(state["broken"]).any():
                    raise FloatingPointError(
                        "the network computed NaN instead of scores of tokens: its weights hold NaN or infinity, or "
                        "backbone.dtype is too narrow for them (float32 is the widest)."
                    )
                if done.all() or count >= limit:
                    break
                count = min(limit, limit if every is None else count + every)
                state = programs.decode(params, state, np.int32(count))
            for row, number in enumerate(numbers):
                found = tokens[row, : lengths[row]].tolist()
                finish = "eos" if found[-1] in self.rules.eos else "length"
                yield int(number), Answer(found, "stop" if row in stopped else finish)


def _watch(state: State, logits: jax.Array) -> State:
    """Notes prompts whose scores are NaN: argmax would hand out some token all the same."""
    broken = jnp.isnan(logits).reshape(len(state["done"]), -1).any(-1) & ~state["done"]
    return state | {"broken": state["broken"] | broken}
