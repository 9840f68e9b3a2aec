"""Decoding with a key–value cache: prefill reads a prompt once, decode adds one token at a time.

Each is compiled once per shape: prompts are padded on the right to a length bucket, answers have room for a multiple of
`ROOM` tokens, and every batch has the same number of rows. Parameters keep their shardings; rows are split over the
mesh's data axes. A `Sampling` or a `BeamSearch` chooses the next token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeGuard, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from instructrec_jax.adapters.heads import LMHead
from instructrec_jax.backbones import decoder, gpt2
from instructrec_jax.backbones.decoder import DecoderCache
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.backbones.seq2seq import EncoderDecoder, EncoderDecoderCache
from instructrec_jax.data.packing import length_buckets
from instructrec_jax.distributed.launch import fetch, place
from instructrec_jax.distributed.mesh import DeviceMesh, Nested, activation_sharding, replicated
from instructrec_jax.inference.beam import BeamSearch
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules
from instructrec_jax.inference.sampling import Sampling, State, seen_tokens

NOT_NUMBERS = (
    "the network's logits are NaN: its weights contain NaN or infinity, or backbone.dtype is too narrow for them "
    "(float32 is the widest)."
)
ROOM = 32  # answers have room for a multiple of this number of tokens

Network = TypeVar("Network", bound=nnx.Module)
Parameters = Nested[jax.Array]  # the state of a model, as nested as its modules


@runtime_checkable
class LanguageModel(Protocol):
    """A network with a language-model head."""

    backbone: decoder.Decoder | gpt2.GPT2 | EncoderDecoder
    head: LMHead


class Search(Protocol):
    """A way of choosing tokens: `Sampling` or `BeamSearch`."""

    structure: GenerationConfig

    def begin(self, state: State, room: int) -> State:
        """The state with the search's own arrays, with room for `room` tokens per answer."""

    def advance(self, state: State, logits: jax.Array) -> State:
        """Chooses the next token from logits float32 [rows, vocab]."""

    def answers(self, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
        """int32 tokens [prompts, room], int32 token counts [prompts], and the tokens' float32 log-probabilities."""


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, including the end-of-sequence token.

    Attributes:
      finish: the reason why it ended: "eos", "stop" (a stop sequence) or "length" (max_new_tokens).
      log_probs: the network's log-probability of each token, given the prompt and the tokens before it: of its own
        softmax, before temperature, penalties and forced or suppressed tokens.
    """

    tokens: list[int]
    finish: str
    log_probs: list[float] = field(default_factory=list, compare=False)


@dataclass(frozen=True)
class Programs:
    """The compiled programs for one structure of a config.

    `prefill(params, prompts, room)` returns a state: the cache, the tokens chosen so far (including the first) and the
    search's own arrays. `decode(params, state, until)` runs on the device until `until` tokens are chosen or all rows
    are done; it donates its state. The same program therefore streams token by token, checks for stop sequences every
    few tokens, or writes whole answers.
    """

    search: Search
    prefill: Callable[[Parameters, dict[str, jax.Array], int], State]
    decode: Callable[[Parameters, State, np.int32], State]


def check_prompts(
    prompts: Sequence[np.ndarray],
    names: Sequence[str],
    config: GenerationConfig,
    *,
    max_length: int,
    max_answer: int | None = None,
    encoder_decoder: bool,
) -> None:
    """Checks that every prompt can be answered.

    Args:
      prompts: int32 [tokens] each.
      names: the prompts' names in errors.
      max_length: maximum tokens of prompt and answer together (encoder–decoder: of each).
      max_answer: of an encoder–decoder's answer, where it is another number.

    Raises:
      ValueError: a prompt has no tokens, or leaves no room for the answer.
    """
    new = config.max_new_tokens
    if encoder_decoder and max_answer is not None and new > max_answer:
        raise ValueError(
            f"max_new_tokens is {new:,}, but the network writes at most {max_answer:,} tokens: lower it to that."
        )
    for prompt, name in zip(prompts, names, strict=True):
        if len(prompt) == 0:
            raise ValueError(f"{name} has no tokens: give a prompt that is not empty.")
        total, share = len(prompt) + new, "for both together"
        if encoder_decoder:
            total = len(prompt) if max_answer is not None else max(len(prompt), new)
            share = "for each"
        if total > max_length:
            raise ValueError(
                f"{name} has {len(prompt):,} tokens and max_new_tokens is {new:,}, but the network's limit is "
                f"{max_length:,} tokens {share}: shorten the prompt, or lower max_new_tokens."
            )


class Decoder(Generic[Network]):
    """Answers tokenized prompts with a network on a mesh.

    Args:
      graphdef: of a `tasks.base.Model` with a language-model head.
      max_length, max_answer: see `check_prompts`.
      view: the network -> its part with `backbone` and `head`.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[Network],
        mesh: DeviceMesh,
        rules: TokenRules,
        *,
        max_length: int,
        max_answer: int | None = None,
        encoder_decoder: bool,
        view: Callable[[Network], object] = lambda model: model,
    ):
        self.graphdef, self.mesh, self.rules, self.view = graphdef, mesh, rules, view
        self.max_length, self.max_answer, self.encoder_decoder = max_length, max_answer, encoder_decoder
        self._programs: dict[GenerationConfig, Programs] = {}

    def programs(self, config: GenerationConfig) -> Programs:
        """The programs of a config, built once per structure."""
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

    def model(self, params: Parameters) -> LanguageModel:
        """The network with its parameters, inside a program."""
        model = self.view(nnx.merge(self.graphdef, params))
        if not isinstance(model, LanguageModel):
            raise TypeError(f"decoding needs a model with a backbone and a head, but got a {type(model).__name__}.")
        return model

    def _prefill(self, search: Search, params: Parameters, prompts: dict[str, jax.Array], room: int) -> State:
        model = self.model(params)
        state, logits = self.read(model, prompts, room)
        if search.structure.repetition_penalty != 1:
            tokens = prompts["tokens"]
            valid = jnp.arange(tokens.shape[1]) < prompts["lengths"][:, None]
            if isinstance(model.backbone, EncoderDecoder):  # whose answer has its start token alone
                assert self.rules.start is not None  # see `read`
                tokens, valid = jnp.full_like(tokens[:, :1], self.rules.start), jnp.ones_like(valid[:, :1])
            state.arrays["seen"] = seen_tokens(tokens, valid, logits.shape[-1])
        state = search.begin(state, room)
        return self._constrain(search.advance(_watch(state, logits), logits))

    def read(self, model: LanguageModel, prompts: dict[str, jax.Array], room: int) -> tuple[State, jax.Array]:
        """Reads prompts (of `batches`), inside a program.

        Args:
          room: tokens that the cache has room for behind the prompts.

        Returns (the cache and the arrays of `prompts` that the search needs; logits of the first token,
        float32 [prompts, vocab]).
        """
        tokens, lengths = prompts["tokens"], prompts["lengths"]
        rows, length = tokens.shape
        valid = jnp.arange(length) < lengths[:, None]
        segment_ids, positions = valid.astype(jnp.int32), jnp.where(valid, jnp.arange(length), 0)
        arrays = {name: x for name, x in prompts.items() if name not in ("tokens", "lengths", "pixels", "places")}
        arrays |= {"count": jnp.zeros((), jnp.int32), "broken": jnp.zeros_like(prompts["done"])}
        cache: DecoderCache
        images = RowImages(prompts["pixels"], prompts["places"]) if "pixels" in prompts else None
        if isinstance(model.backbone, EncoderDecoder):
            if self.rules.start is None:
                raise ValueError("an encoder–decoder needs a start token: see `TokenRules`.")
            encoded = model.backbone.encode(tokens, segment_ids, positions, images=images)
            room_for = model.backbone.empty_cache(rows, room, length)
            tokens, place = jnp.full((rows, 1), self.rules.start, jnp.int32), jnp.zeros((rows, 1), jnp.int32)
            hidden, cache = model.backbone.decode(tokens, place + 1, place, encoded, segment_ids, cache=room_for)
            last, arrays["position"] = hidden[:, 0], place[:, 0] + 1
        else:
            types = segment_ids * model.backbone.prompt_type
            empty = model.backbone.empty_cache(rows, length + room)
            if images is not None:
                assert isinstance(model.backbone, decoder.Decoder)
                hidden, cache = model.backbone(tokens, segment_ids, positions, types, cache=empty, images=images)
            else:
                hidden, cache = model.backbone(tokens, segment_ids, positions, types, cache=empty)
            # only a prompt's last position goes through the head, whose output is as wide as the vocabulary
            last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
            arrays["position"] = lengths
        return State(cache, arrays), model.head(model.backbone, last)

    def _decode(self, search: Search, params: Parameters, state: State, until: jax.Array) -> State:
        model = self.model(params)
        until = jnp.minimum(until, state.arrays["limit"])

        def unfinished(state: State) -> jax.Array:
            return (state.arrays["count"] < until) & ~state.arrays["done"].all()

        def step(state: State) -> State:
            arrays = state.arrays
            positions = arrays["position"] + arrays["count"] - 1
            cache, logits = self.extend(model, state.cache, arrays["last"], positions)
            return self._constrain(search.advance(_watch(State(cache, arrays), logits), logits))

        return self._constrain(jax.lax.while_loop(unfinished, step, state))

    def extend(
        self, model: LanguageModel, cache: DecoderCache, tokens: jax.Array, positions: jax.Array
    ) -> tuple[DecoderCache, jax.Array]:
        """The cache with one more token per row (int32 [rows] each), and the next one's logits, float32 [rows, vocab].

        Inside a program.
        """
        tokens, positions = tokens[:, None], positions[:, None]
        ones = jnp.ones_like(tokens)
        if isinstance(model.backbone, EncoderDecoder):
            assert _has_encoded(cache)
            hidden, cache = model.backbone.decode(tokens, ones, positions, cache=cache)
        else:
            hidden, cache = model.backbone(tokens, ones, positions, ones * 0, cache=cache)
        return cache, model.head(model.backbone, hidden[:, 0])

    def _constrain(self, state: State) -> State:
        """Constrains rows to data axes and key heads to the tensor axis, so that the next call is not recompiled."""

        def pin(path: tuple[object, ...], x: jax.Array) -> jax.Array:
            layers = any(getattr(key, "key", None) == "layers" for key in path)
            axes = (None, "batch", None, "heads", None) if layers else ("batch", None, None)
            return jax.lax.with_sharding_constraint(x, self.sharding(x.shape, axes))

        return jax.tree_util.tree_map_with_path(pin, state)

    def sharding(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
        return activation_sharding(self.mesh, shape, axes[: len(shape)])

    # ---------------------------------------------------------------- on the host

    def check(self, prompts: Sequence[np.ndarray], names: Sequence[str], config: GenerationConfig) -> None:
        """See `check_prompts`. Also raises ValueError for guidance of a network that knows no blank prompts."""
        if config.guidance_scale != 1 and self.rules.blank is None:
            raise ValueError(
                f"guidance_scale is {config.guidance_scale:g}, but the network never learned without prompts: set it "
                "to 1. A text_to_image run that is trained with task.blank_prompts above 0 can be guided."
            )
        check_prompts(
            prompts,
            names,
            config,
            max_length=self.max_length,
            max_answer=self.max_answer,
            encoder_decoder=self.encoder_decoder,
        )

    def batches(
        self, prompts: Sequence[np.ndarray], config: GenerationConfig, images: Sequence[RowImages] | None = None
    ) -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
        """Batches of `batch_size` prompts of similar length: (their numbers, the arguments of prefill)."""
        lengths = np.array([max(map(len, self._guides(prompt, config))) for prompt in prompts])
        # bounded by the next power of two, because T5 has no maximum length
        buckets = length_buckets(min(self.max_length, 2 ** int(lengths.max()).bit_length()))
        bucket_of = np.searchsorted(buckets, lengths)
        rows = min(config.batch_size, len(prompts))
        for bucket in np.unique(bucket_of):
            members = np.flatnonzero(bucket_of == bucket)
            for first in range(0, len(members), rows):
                chosen = members[first : first + rows]
                length, seen = int(buckets[bucket]), [] if images is None else [images[i] for i in chosen]
                yield chosen, self._lay_out([prompts[i] for i in chosen], seen, chosen, rows, length, config)

    def _guides(self, prompt: np.ndarray, config: GenerationConfig) -> list[np.ndarray]:
        """The prompt, and with guidance also the blank one."""
        if config.guidance_scale == 1:
            return [prompt]
        blank = self.rules.blank
        assert blank is not None  # see `check`
        return [prompt, np.full_like(prompt, blank) if isinstance(blank, int) else np.array(blank, np.int32)]

    def _lay_out(
        self,
        prompts: list[np.ndarray],
        images: list[RowImages],
        numbers: np.ndarray,
        rows: int,
        length: int,
        config: GenerationConfig,
    ) -> dict[str, jax.Array]:
        """The arguments of prefill; unused rows repeat the first prompt and are done from the start.

        With guidance, a row with a blank prompt follows each row.
        """
        filled = [*prompts, *[prompts[0]] * (rows - len(prompts))]
        filled = [row for each in filled for row in self._guides(each, config)]
        tokens = np.full((len(filled), length), self.rules.pad, np.int32)
        for row, prompt in enumerate(filled):
            tokens[row, : len(prompt)] = prompt
        arrays = {
            "tokens": tokens,
            "lengths": np.array([len(prompt) for prompt in filled], np.int32),
            "numbers": np.resize(numbers, rows).astype(np.int32),
            "done": np.arange(rows) >= len(prompts),
        }
        if any(each.pixels.shape[1] for each in images):
            arrays |= image_arrays([*images, *[images[0]] * (rows - len(images))], length)
        laid = {name: place(x, self.sharding(x.shape, ("batch", *[None] * (x.ndim - 1)))) for name, x in arrays.items()}
        scalars: dict[str, np.generic] = {name: np.float32(value) for name, value in config.scalars().items()}
        scalars |= {"limit": np.int32(config.max_new_tokens), "seed": np.uint32(config.seed)}
        return laid | {name: place(x, replicated(self.mesh)) for name, x in scalars.items()}

    def answer(
        self,
        params: Parameters,
        prompts: Sequence[np.ndarray],
        config: GenerationConfig,
        *,
        every: int | None = None,
        stops: Callable[[int, list[int]], bool] | None = None,
        images: Sequence[RowImages] | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Answers prompts (int32 [tokens] each, see `check`) and yields (number of the prompt, answer) by batch.

        Args:
          every: tokens between two checks of the answers; None: check only at the end.
          stops: stops(number, tokens so far) -> whether this answer ends here; called at every check.
          images: of each prompt, in a single row: pixels [1, images, ...] and places [1, tokens].

        Raises:
          FloatingPointError: the network's logits are NaN.
        """
        programs = self.programs(config)
        limit = config.max_new_tokens
        room = -(-limit // ROOM) * ROOM
        for numbers, arguments in self.batches(prompts, config, images):
            state = programs.prefill(params, arguments, room)
            stopped: set[int] = set()
            count = 1
            while True:
                found, done = programs.search.answers(state), fetch(state.arrays["done"])
                tokens, lengths, log_probs = (fetch(x) for x in found)
                if stops is not None:
                    for row, number in enumerate(numbers):
                        if row not in stopped and stops(int(number), tokens[row, : lengths[row]].tolist()):
                            stopped.add(row)
                    ended = done | np.isin(np.arange(len(done)), list(stopped))
                    if (ended != done).any():
                        state.arrays["done"] = place(ended, state.arrays["done"].sharding)
                    done = ended
                if fetch(state.arrays["broken"]).any():
                    raise FloatingPointError(NOT_NUMBERS)
                if done.all() or count >= limit:
                    break
                count = min(limit, limit if every is None else count + every)
                state = programs.decode(params, state, np.int32(count))
            for row, number in enumerate(numbers):
                written = tokens[row, : lengths[row]].tolist()
                finish = "stop" if row in stopped else "eos" if written[-1] in self.rules.eos else "length"
                yield int(number), Answer(written, finish, log_probs[row, : lengths[row]].tolist())


def image_arrays(images: Sequence[RowImages], length: int) -> dict[str, np.ndarray]:
    """Images of prompts, each in a single row, as rows of one batch: float32 "pixels" and int32 "places"."""
    most = max(each.pixels.shape[1] for each in images)
    pixels = np.zeros((len(images), most, *images[0].pixels.shape[2:]), np.float32)
    places = np.full((len(images), length), -1, np.int32)
    for row, each in enumerate(images):
        pixels[row, : each.pixels.shape[1]] = each.pixels[0]
        places[row, : each.places.shape[1]] = each.places[0]
    return {"pixels": pixels, "places": places}


def _has_encoded(cache: DecoderCache) -> TypeGuard[EncoderDecoderCache]:
    return "encoded_segment_ids" in cache


def _watch(state: State, logits: jax.Array) -> State:
    """Marks prompts whose logits are NaN, because argmax would return a token anyway."""
    done = state.arrays["done"]
    broken = jnp.isnan(logits).reshape(len(done), -1).any(-1) & ~done
    return State(state.cache, state.arrays | {"broken": state.arrays["broken"] | broken})
