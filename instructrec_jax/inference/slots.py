"""A key–value cache whose rows serve different answers: texts join and leave between two steps.

Slot j of a row holds token j of its text, so what a row computes does not depend on its neighbours. All of a prompt but
its last token is read in chunks, straight into the row (`prefill`); from there on one `step` for all rows reads each
row's last token and chooses its next. The first chosen token therefore comes from the same program as all others.

A whole chunk at an offset is always computed by the same program, whatever the prompt's length. Its keys and values are
therefore the same bits whether they are computed or copied from an equal prefix (`insert`).

Images are read one by one before the chunk that they are in (`see`), and take the places of its embedded tokens. Where
tokens attend to later ones, a prompt is read as a whole (`prefill_whole`).

An encoder–decoder encodes its source as a whole (`encode`); its row then starts with the decoder's start token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.backbones.decoder import Decoder as Seeing
from instructrec_jax.backbones.decoder import DecoderCache
from instructrec_jax.backbones.image_reader import ReaderSpec
from instructrec_jax.backbones.layers import Cache
from instructrec_jax.backbones.row_images import RowImages, RowVectors
from instructrec_jax.backbones.seq2seq import EncoderDecoder, EncoderDecoderCache
from instructrec_jax.distributed.mesh import activation_sharding, replicated
from instructrec_jax.inference.decoding import Decoder, LanguageModel, Network, Parameters
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.sampling import choose, log_likelihood

MOST_TOP = 20  # maximum number of likeliest tokens that a step reports
SHORTEST = 256  # of the lengths that programs are compiled for
GROWTH = 4  # from one number of rows, and one length of a prefill, to the next
STEP_GROWTH = 2  # the same of a step's lengths, since every row reads all of its slots: 4 would read 4 times too many


class Rows:
    """What the host knows of each row between two steps: NumPy arrays [slots] by name.

    "active": whether the row takes part in steps; "last", "place": its last token, and that token's slot; "source": the
    length of an encoder–decoder's source; "top": whether the likeliest tokens are reported; "count", "limit", "seed",
    "numbers" and the others: as in `sampling.choose`.
    """

    def __init__(self, slots: int):
        zeros = dict.fromkeys(("last", "place", "source", "count", "limit", "numbers", "top_k"), np.int32)
        numbers = dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), np.float32)
        kinds = {"active": np.bool_, "top": np.bool_, "seed": np.uint32} | zeros | numbers
        self.arrays: dict[str, np.ndarray] = {name: np.zeros(slots, kind) for name, kind in kinds.items()}
        self.arrays["repetition_penalty"][:] = 1
        self.arrays["top_p"][:] = 1

    def set(self, row: int, config: GenerationConfig, **values: int | bool) -> None:
        """Fills a row with the settings of an answer, and "last", "place", "numbers" and so on."""
        scalars = {name: value for name, value in config.scalars().items() if name in self.arrays}
        settings = {"seed": config.seed, "limit": config.max_new_tokens, "top_k": config.top_k or 0, "count": 0}
        for name, value in (scalars | settings | values).items():
            self.arrays[name][row] = value

    def first(self, count: int) -> dict[str, np.ndarray]:
        """Copies of the first rows, since a step may still be reading them when they change."""
        return {name: array[:count].copy() for name, array in self.arrays.items()}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chosen:
    """One step's result.

    Attributes:
      tokens: int32 [rows].
      log_probs: float32 [rows], as in `decoding.Answer`.
      broken: bool [rows], whether the network's logits were NaN.
      top_tokens, top_log_probs: int32 and float32 [rows, at most MOST_TOP], the likeliest tokens, the likeliest first;
        zeros if no row asked for them.
    """

    tokens: jax.Array
    log_probs: jax.Array
    broken: jax.Array
    top_tokens: jax.Array
    top_log_probs: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Held:
    """On the devices: keys and values [layers, slots, capacity, heads, head_dim], and bool [slots, vocab]."""

    layers: Cache
    seen: jax.Array


Arrays = TypeVar("Arrays", _Held, Cache)


@dataclass(frozen=True)
class Seen:
    """The images of a prompt, as far as they are read.

    Attributes:
      vectors: [1, capacity, width], of all images of the prompt one after another; zeros for those not yet read.
      places: int32 [tokens], of the prompt, as in `RowImages`; none for a prompt without images.
    """

    vectors: jax.Array
    places: np.ndarray


class Slots:
    """`slots` rows for `capacity` tokens each, and the programs that work on them.

    Args:
      params: on the decoder's mesh.
      capacity: tokens of prompt and answer (encoder–decoder: of each) in a row.
      chunk: tokens that one call of `prefill` reads.

    Attributes:
      sizes: the numbers of tokens that `prefill` is compiled for: a whole chunk, and shorter last ones.
      reads: the numbers of slots that `prefill` is compiled for.
      counts, lengths: the numbers of rows, and of slots per row, that a step is compiled for.
      sees: whether the network reads images between words.
      together: what attends in both directions, see `image_reader.ReaderSpec`; it is read by `prefill_whole`.
      image_shape: (height, width, channels) of an image.
      unseen: of a prompt without images.
    """

    def __init__(self, decoder: Decoder[Network], params: Parameters, *, slots: int, capacity: int, chunk: int):
        self.decoder, self.params, self.chunk, self.slots = decoder, params, chunk, slots
        self.capacity = -(-capacity // chunk) * chunk  # chunks are written whole
        self.counts = _sizes(1, slots, GROWTH)
        self.sizes = tuple(sorted({-(-chunk // 4), -(-chunk // 2), chunk}))
        shortest = min(self.capacity, -(-SHORTEST // chunk) * chunk)
        self.reads, self.lengths = (
            tuple(-(-size // chunk) * chunk for size in _sizes(shortest, self.capacity, growth))
            for growth in (GROWTH, STEP_GROWTH)
        )
        self.held: _Held = jax.jit(self._empty)(params)
        reader = self._reader()
        self.sees, self.together = reader is not None, "nothing" if reader is None else reader.together
        self.image_shape = () if reader is None else (*[reader.vision.image_size] * 2, reader.vision.channels)
        if reader is not None:
            self.unseen = Seen(jax.jit(self._no_vectors)(params), np.zeros(0, np.int32))
        self._prefill = jax.jit(self._prefill_program, donate_argnums=1, static_argnames=("kept", "length"))
        self._see = jax.jit(self._see_program)
        self._encode = jax.jit(self._encode_program, donate_argnums=1)
        self._step = jax.jit(self._step_program, donate_argnums=1, static_argnames="length")
        self._insert = jax.jit(self._insert_program, donate_argnums=0)
        self._clear = jax.jit(self._clear_program, donate_argnums=0)
        self._remember = jax.jit(self._remember_program, donate_argnums=0)

    def _reader(self) -> ReaderSpec | None:
        """How the network reads images."""
        found: list[ReaderSpec] = []

        def look(params: Parameters) -> None:
            backbone = self.decoder.model(params).backbone
            if isinstance(backbone, Seeing) and backbone.reader is not None:
                found.append(backbone.reader.spec)

        jax.eval_shape(look, self.params)
        return found[0] if found else None

    def count_for(self, rows: int) -> int:
        """The smallest compiled number of rows that is at least `rows`."""
        return next(count for count in self.counts if count >= rows)

    def length_for(self, tokens: int) -> int:
        """The smallest compiled length that is at least `tokens`."""
        return next(length for length in self.lengths if length >= tokens)

    # ---------------------------------------------------------------- on the host

    def prefill(self, row: int, tokens: np.ndarray, offset: int, seen: Seen | None = None) -> tuple[Cache, jax.Array]:
        """Reads up to `chunk` tokens (int32 [n]) into the slots from `offset`, a multiple of `chunk`.

        Returns the chunk's keys and values, and whether they are numbers (not NaN), a bool scalar.
        """
        size = next(size for size in self.sizes if size >= len(tokens))
        length = next(length for length in self.reads if length >= offset + self.chunk)
        return self._read(row, tokens, offset, seen, size, self.chunk, length)

    def prefill_whole(self, row: int, tokens: np.ndarray, seen: Seen | None = None) -> jax.Array:
        """Reads all tokens of a prompt at once. Returns whether the result are numbers (not NaN)."""
        length = self.length_for(len(tokens))
        return self._read(row, tokens, 0, seen, length, length, length)[1]

    def _read(
        self, row: int, tokens: np.ndarray, offset: int, seen: Seen | None, size: int, kept: int, length: int
    ) -> tuple[Cache, jax.Array]:
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(tokens)] = tokens
        images = None
        if self.sees:
            seen = seen or self.unseen
            places = np.full((1, size), -1, np.int32)
            places[0, : len(tokens)] = seen.places[offset : offset + len(tokens)] if len(seen.places) else -1
            images = RowVectors(seen.vectors, places)
        place = np.array([row, offset, len(tokens)], np.int32)
        self.held, block, whole = self._prefill(self.params, self.held, padded, place, images, kept=kept, length=length)
        return block, whole

    def see(self, seen: Seen, pixels: np.ndarray, number: int) -> Seen:
        """With image `number` of a prompt, float32 pixels [height, width, channels], read."""
        vectors = self._see(self.params, seen.vectors, pixels[None, None], np.int32(number))
        return replace(seen, vectors=vectors)

    def encode(self, row: int, tokens: np.ndarray) -> jax.Array:
        """Encodes an encoder–decoder's source, int32 [n]. Returns whether the result are numbers (not NaN)."""
        padded = np.zeros((1, self.length_for(len(tokens))), np.int32)
        padded[0, : len(tokens)] = tokens
        self.held, whole = self._encode(self.params, self.held, padded, np.array([row, len(tokens)], np.int32))
        return whole

    def insert(self, row: int, block: Cache, offset: int) -> None:
        """Writes a chunk's keys and values (see `prefill`) into the slots from `offset`."""
        self.held = self._insert(self.held, block, np.array([row, offset], np.int32))

    def remember(self, row: int, tokens: np.ndarray) -> None:
        """Notes which tokens occurred in a row, for its repetition penalty."""
        seen = np.zeros(self.held.seen.shape[1], np.bool_)
        seen[tokens[tokens < len(seen)]] = True  # the token of an image may lie beyond
        self.held = self._remember(self.held, seen, np.int32(row))

    def clear(self, row: int) -> None:
        """Zeros instead of a row's NaN, which would spread even from slots that are not attended to."""
        self.held = self._clear(self.held, np.int32(row))

    def step(self, rows: Mapping[str, np.ndarray], length: int) -> Chosen:
        """Reads the last tokens of the first rows (see `Rows.first`) and chooses the next, within the first slots."""
        self.held, chosen = self._step(self.params, self.held, dict(rows), length=length)
        return chosen

    # ---------------------------------------------------------------- on the device

    def _empty(self, params: Parameters) -> _Held:
        model = self.decoder.model(params)
        backbone = model.backbone
        more = (self.capacity,) if isinstance(backbone, EncoderDecoder) else ()
        layers = backbone.empty_cache(self.slots, self.capacity, *more)["layers"]
        vocab = model.head.vocab_size(backbone)
        return self._pin(_Held(layers, jnp.zeros((self.slots, vocab), bool)))

    def _prefill_program(
        self,
        params: Parameters,
        held: _Held,
        tokens: jax.Array,
        place: jax.Array,
        images: RowVectors | None,
        *,
        kept: int,
        length: int,
    ) -> tuple[_Held, Cache, jax.Array]:
        model, (row, offset, count) = self.decoder.model(params), place
        backbone = model.backbone
        assert not isinstance(backbone, EncoderDecoder)
        slots, own = jnp.arange(length)[None], jnp.arange(tokens.shape[1])[None]
        valid = own < count
        cache: DecoderCache = {
            "layers": jax.tree.map(lambda x: _part(x, row, 0, length), held.layers),
            "segment_ids": (slots < offset).astype(jnp.int32),
            "positions": slots,
            "index": offset,
        }
        positions, segment_ids = jnp.where(valid, offset + own, 0), valid.astype(jnp.int32)
        if images is None:
            hidden, cache = backbone(tokens, segment_ids, positions, tokens * 0, cache=cache)
        else:
            assert isinstance(backbone, Seeing)
            types = segment_ids * backbone.prompt_type
            hidden, cache = backbone(tokens, segment_ids, positions, types, cache=cache, images=images)
        block = jax.tree.map(lambda x: _part(x, 0, offset, kept), cache["layers"])
        whole = ~(jnp.isnan(hidden).any(-1) & valid).any()
        return self._pin(self._insert_program(held, block, place)), self._pin(block), self._spread(whole)

    def _see_program(self, params: Parameters, vectors: jax.Array, pixels: jax.Array, number: jax.Array) -> jax.Array:
        backbone = self.decoder.model(params).backbone
        assert isinstance(backbone, Seeing) and backbone.reader is not None
        found = backbone.reader(RowImages(pixels, jnp.zeros((1, 1), jnp.int32)))
        place = (jnp.int32(0), number * found.shape[1], jnp.int32(0))
        return self._spread(jax.lax.dynamic_update_slice(vectors, found.astype(vectors.dtype), place))

    def _no_vectors(self, params: Parameters) -> jax.Array:
        backbone = self.decoder.model(params).backbone
        assert isinstance(backbone, Seeing)
        return self._spread(jnp.zeros((1, self.capacity, backbone.hidden_size), backbone.dtype))

    def _encode_program(
        self, params: Parameters, held: _Held, tokens: jax.Array, place: jax.Array
    ) -> tuple[_Held, jax.Array]:
        model, (row, count) = self.decoder.model(params), place
        backbone, length = model.backbone, tokens.shape[1]
        assert isinstance(backbone, EncoderDecoder) and self.decoder.rules.start is not None
        valid = jnp.arange(length)[None] < count
        segment_ids, positions = valid.astype(jnp.int32), jnp.where(valid, jnp.arange(length), 0)
        encoded = backbone.encode(tokens, segment_ids, positions)
        start, zero = jnp.full((1, 1), self.decoder.rules.start, jnp.int32), jnp.zeros((1, 1), jnp.int32)
        empty = backbone.empty_cache(1, 1, length)
        hidden, cache = backbone.decode(start, zero + 1, zero, encoded, segment_ids, cache=empty)
        held = self._insert_program(held, cache["layers"], jnp.array([row, 0]))
        return self._pin(held), self._spread(~jnp.isnan(hidden).any())

    def _insert_program(self, held: _Held, block: Cache, place: jax.Array) -> _Held:
        def write(whole: jax.Array, part: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(whole, part, (0, place[0], place[1], 0, 0))

        return self._pin(_Held(jax.tree.map(write, held.layers, block), held.seen))

    def _clear_program(self, held: _Held, row: jax.Array) -> _Held:
        return self._pin(_Held(jax.tree.map(lambda x: x.at[:, row].set(0), held.layers), held.seen))

    def _remember_program(self, held: _Held, seen: jax.Array, row: jax.Array) -> _Held:
        return self._pin(_Held(held.layers, held.seen.at[row].set(seen)))

    def _step_program(
        self, params: Parameters, held: _Held, rows: dict[str, jax.Array], *, length: int
    ) -> tuple[_Held, Chosen]:
        model = self.decoder.model(params)
        count, active = len(rows["last"]), rows["active"]
        hidden, layers = _next_hidden(model, held.layers, rows, length)
        logits = model.head(model.backbone, hidden[:, 0])
        tokens = choose(logits, rows | {"seen": held.seen[:count]}, self.decoder.rules)
        chosen = jnp.where(active, tokens, logits.shape[-1])  # beyond the vocabulary: not written
        seen = held.seen.at[jnp.arange(count), chosen].set(True, mode="drop")
        most = min(MOST_TOP, logits.shape[-1])

        def top(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            best, where = jax.lax.top_k(logits, most)
            return where.astype(jnp.int32), best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

        def none(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.zeros((count, most), jnp.int32), jnp.zeros((count, most))

        likeliest = jax.lax.cond((rows["top"] & active).any(), top, none, logits)
        broken = jnp.isnan(logits).any(-1) & active
        result = Chosen(tokens, log_likelihood(logits, tokens), broken, *likeliest)
        return self._pin(_Held(layers, seen)), jax.tree.map(self._spread, result)

    def _pin(self, tree: Arrays) -> Arrays:
        """Constrains heads to the tensor axis and leaves rows whole, so that the next call is not recompiled."""

        def pin(x: jax.Array) -> jax.Array:
            axes = (None, None, None, "heads", None) if x.ndim == 5 else (None,) * x.ndim
            return jax.lax.with_sharding_constraint(x, activation_sharding(self.decoder.mesh, x.shape, axes))

        pinned: Arrays = jax.tree.map(pin, tree)
        return pinned

    def _spread(self, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, replicated(self.decoder.mesh))


def _next_hidden(
    model: LanguageModel, layers: Cache, rows: Mapping[str, jax.Array], length: int
) -> tuple[jax.Array, Cache]:
    """The hidden states [rows, 1, hidden] of each row's last token, and the cache with it."""
    slots, active, place = jnp.arange(length)[None], rows["active"], rows["place"]
    tokens, positions, segment_ids = rows["last"][:, None], place[:, None], active.astype(jnp.int32)[:, None]
    cache: DecoderCache = {
        "layers": layers,
        "segment_ids": (slots < positions).astype(jnp.int32),
        "positions": jnp.broadcast_to(slots, (len(place), length)),
        # a row that waits, or reads its prompt, is not written
        "index": jnp.where(active, place, jnp.iinfo(jnp.int32).max // 2),
    }
    if isinstance(model.backbone, EncoderDecoder):
        source = (slots < rows["source"][:, None]).astype(jnp.int32)
        pair: EncoderDecoderCache = {**cache, "encoded_segment_ids": source}
        hidden, pair = model.backbone.decode(tokens, segment_ids, positions, cache=pair)
        return hidden, pair["layers"]
    hidden, cache = model.backbone(tokens, segment_ids, positions, tokens * 0, cache=cache)
    return hidden, cache["layers"]


def _part(x: jax.Array, row: jax.Array | int, offset: jax.Array | int, length: int) -> jax.Array:
    """[layers, 1, length, ...] of x [layers, slots, capacity, ...]."""
    return jax.lax.dynamic_slice(x, (0, row, offset, 0, 0), (x.shape[0], 1, length, *x.shape[3:]))


def _sizes(smallest: int, largest: int, growth: int) -> tuple[int, ...]:
    """The numbers from smallest to largest that grow by a factor, the last being largest."""
    sizes = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= growth
    return (*sizes, largest)
