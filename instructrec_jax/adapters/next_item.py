"""The sequence head: a small network, by default a causal transformer, over item vectors, with the instruction's vector
as prefix.

With free item vectors it is like SASRec (Kang & McAuley, 2018); with vectors of the items' texts or pictures it also
scores items without interactions (UniSRec; Hou et al., 2022). As it is by default, it differs from the paper's network:
GELU and a feed-forward layer four times as wide (paper: ReLU, as wide as the item vectors), no dropout of attention
weights, biases of items. Options make it that network, BERT4Rec's, HSTU's or GRU4Rec's: see `next_item_layers`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.adapters.adapter_config import Activation, Kind, Norm, Positions
from instructrec_jax.adapters.next_item_layers import EPS, LayerSpec, new_layer
from instructrec_jax.backbones.decoder import run_layers
from instructrec_jax.backbones.layers import (
    WHOLE_STACK,
    DropoutKeys,
    Embedding,
    LayerNorm,
    Linear,
    Stack,
    dropout,
    normal,
)
from instructrec_jax.backbones.tables import dense_table

MASK = -1  # in place of an item: the one that is to be predicted


@dataclass(frozen=True)
class NextItemSpec:
    """Sizes and variants of a `NextItemHead`; for those of its layers see `LayerSpec`."""

    num_items: int
    text_size: int  # width of the texts' vectors; 0: items have no text vectors
    ids: bool  # whether items have trained vectors of their own
    hidden_size: int
    num_layers: int
    num_heads: int
    max_length: int  # positions of a sequence, including the instruction's
    dropout: float
    picture_size: int = 0  # width of the pictures' vectors; 0: items have no picture vectors
    factor_size: int = 0  # width of the items' vectors of co-occurrence, which are trained, too; 0: none
    network: Kind = "transformer"
    norm: Norm = "pre"
    activation: Activation = "gelu"
    mlp_factor: int = 4
    attention_dropout: float = 0.0
    positions: Positions = "learned"
    item_bias: bool = True  # whether items with vectors of their own have a bias of the score, too
    masked: bool = False  # whether positions see later ones, and items may be `MASK`

    @property
    def layer(self) -> LayerSpec:
        return LayerSpec(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            max_length=self.max_length,
            dropout=self.dropout,
            norm=self.norm,
            activation=self.activation,
            mlp_factor=self.mlp_factor,
            attention_dropout=self.attention_dropout,
            relative_positions=self.positions in ("relative", "both"),
            causal=not self.masked,
        )


class NextItemHead(nnx.Module):
    """Reads sequences: first the instruction, then the items of a history, oldest first.

    An item's vector is (W t + V p + F c) / sqrt(hidden_size) + e, with its text's vector t, its picture's vector p, its
    vector of co-occurrence c (`ranking.item_factors`, zero in a new head) and its own vector e, each if the spec
    includes it; p is zero for an item without a picture. The same vectors serve as
    input, times sqrt(hidden_size), and as output: the score of item i is q · vector_i + bias_i. So e is small compared
    with the input, and Adam's steps suit its scale in the scores (Vaswani et al., 2017).
    """

    def __init__(self, spec: NextItemSpec, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        if not (spec.text_size or spec.picture_size or spec.ids):
            raise ValueError("items need vectors: set text_size, picture_size (of their texts, pictures) or ids (own).")
        if spec.hidden_size % spec.num_heads:
            raise ValueError(
                f"hidden size {spec.hidden_size} must be a multiple of the number of attention heads, {spec.num_heads}."
            )
        width = spec.hidden_size

        def projection(size: int, scale: float) -> Linear:
            init = normal(scale * size**-0.5)
            return Linear(size, width, axes=("embed", None), init=init, use_bias=False, dtype=dtype, rngs=rngs)

        self.item_projection = projection(spec.text_size, 0.5) if spec.text_size else None
        self.instruction_projection = projection(spec.text_size, 0.02) if spec.text_size else None
        # Beside vectors of texts or pictures an item's own vector starts near zero, as a residual.
        own = normal(0.002 if spec.text_size or spec.picture_size or spec.factor_size else 0.02)
        self.items = Embedding(spec.num_items, width, init=own, dtype=dtype, rngs=rngs) if spec.ids else None
        has_bias = spec.ids and spec.item_bias
        self.bias = nnx.Param(jnp.zeros((spec.num_items,), jnp.float32), axes=("vocab",)) if has_bias else None
        self.positions = (
            Embedding(spec.max_length, width, init=normal(0.02), axes=(None, "embed"), dtype=dtype, rngs=rngs)
            if spec.positions in ("learned", "both")
            else None
        )
        self.layers = Stack(
            (spec.network,) * spec.num_layers,
            lambda kind, rngs: new_layer(kind, spec.layer, dtype, rngs),
            options=WHOLE_STACK,
            rngs=rngs,
        )
        # The outputs of a post-norm layer are normalized, and those of a GRU lie between −1 and 1.
        plain = spec.network == "gru" or spec.norm == "post"
        self.final_norm = None if plain else LayerNorm(width, eps=EPS, dtype=dtype)
        # Last, so that they change none of the random numbers above.
        self.picture_projection = projection(spec.picture_size, 0.5) if spec.picture_size else None
        self.mask = nnx.Param(normal(0.02)(rngs.params(), (width,)), axes=("embed",)) if spec.masked else None
        size, zeros = spec.factor_size, nnx.initializers.zeros_init()
        self.factors = Embedding(spec.num_items, size, init=zeros, dtype=dtype, rngs=rngs) if size else None
        self.factor_projection = projection(size, 0.5) if size else None
        self.spec = spec
        self.dtype = dtype

    def item_vectors(
        self, texts: jax.Array, numbers: jax.Array | None = None, pictures: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Vectors and biases of items.

        Args:
          texts: float [items, text_size], of all items.
          numbers: int32 [...], the items; None: all items. An item beyond the spec's num_items has only the vectors of
            its text and picture: neither a vector of its own nor a bias.
          pictures: float [items, picture_size], of all items; needed if the spec has a picture_size.

        Returns: ([..., hidden_size], float32 [...] or None).
        """
        content = None
        for project, features in ((self.item_projection, texts), (self.picture_projection, pictures)):
            if project is not None:
                assert features is not None
                one = project(features if numbers is None else features[numbers]) * self.spec.hidden_size**-0.5
                content = one if content is None else content + one
        if self.items is None:
            assert content is not None  # see __init__
            return content, None
        bias = None if self.bias is None else self.bias[...]
        if numbers is None:
            own = self._own_vectors(None)
        else:
            known = numbers < self.spec.num_items
            inside = jnp.minimum(numbers, self.spec.num_items - 1)
            own = jnp.where(known[..., None], self._own_vectors(inside), 0)
            bias = None if bias is None else jnp.where(known, bias[inside], 0)
        return own if content is None else content + own, bias

    def _own_vectors(self, numbers: jax.Array | None) -> jax.Array:
        """e + F c / sqrt(hidden_size) of items of training, or of all of them (None)."""

        def rows(table: Embedding) -> jax.Array:
            return dense_table(table.table).astype(self.dtype) if numbers is None else table(numbers)

        assert self.items is not None
        if self.factors is None or self.factor_projection is None:
            return rows(self.items)
        return rows(self.items) + self.factor_projection(rows(self.factors)) * self.spec.hidden_size**-0.5

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        item_texts: jax.Array,
        instruction_texts: jax.Array,
        keys: DropoutKeys | None = None,
        item_pictures: jax.Array | None = None,
    ) -> jax.Array:
        """The query vector for the next item at every position: [rows, length, hidden_size].

        Args:
          tokens: int32 [rows, length]; an instruction's number at position 0 of a segment, then numbers of items, or
            `MASK` if the spec is masked.
          item_texts: float [items, text_size].
          instruction_texts: float [instructions, text_size]; if empty, the prefix is zero.
          item_pictures: float [items, picture_size]; needed if the spec has a picture_size.
        """
        first = positions == 0
        x, _ = self.item_vectors(item_texts, jnp.where(first, 0, jnp.maximum(tokens, 0)), item_pictures)
        if self.mask is not None:
            x = jnp.where((tokens == MASK)[..., None], self.mask[...].astype(x.dtype), x)
        if self.instruction_projection is not None and len(instruction_texts):
            prefix = self.instruction_projection(instruction_texts[jnp.where(first, tokens, 0)])
        else:
            prefix = jnp.zeros_like(x)
        x = jnp.where(first[..., None], prefix, x * self.spec.hidden_size**0.5)
        if self.positions is not None:
            x = x + self.positions(positions)
        x = dropout(x, self.spec.dropout, None if keys is None else keys.fold(0))
        x, _ = run_layers(self.layers, x, segment_ids, positions, {}, self.spec.max_length, keys, None)
        return x if self.final_norm is None else self.final_norm(x)
