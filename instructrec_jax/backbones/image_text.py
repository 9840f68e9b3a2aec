"""Pairs of an image network and a text network whose vectors are compared: CLIP and SigLIP."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.arrays import Array
from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, linear
from instructrec_jax.backbones.layers import DropoutKeys, Linear, StackOptions, normal
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.backbones.towers import TextTower, TowerSpec
from instructrec_jax.backbones.vision import VISION, VisionEncoder, VisionSpec, image_rules
from instructrec_jax.hf_types import PretrainedConfig


@dataclass(frozen=True)
class ImageTextSpec:
    """Sizes and variants of an `ImageText`.

    Attributes:
        end_id: the token whose hidden state is the text's vector, the first one in the text; None: the text's largest
            id, as in old CLIP configs; -1: the row's last token, which may be padding (SigLIP).
        text_width: width of a text's vector; 0: no projection.
        image_width: the same for images.
        projection_bias: whether the projections have one.
        logit_shape: of the log of the factor of similarities, and of their bias.
        log_factor: where a new network starts.
        logit_bias: whether similarities have a bias.
    """

    text: TowerSpec
    vision: VisionSpec
    vocab_size: int
    num_positions: int
    end_id: int | None
    text_width: int
    image_width: int = 0
    projection_bias: bool = False
    logit_shape: tuple[int, ...] = ()
    log_factor: float = 0.0
    logit_bias: bool = False


class ImageText(Backbone):
    """An image network and a text network. `word_embeddings`, `max_length` and sizes are those of the text network."""

    def __init__(self, spec: ImageTextSpec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        def projection(tower: TowerSpec, width: int) -> Linear | None:
            init = normal(tower.initializer_range)
            bias, inputs = spec.projection_bias, tower.hidden_size
            if not width:
                return None
            return Linear(inputs, width, axes=("embed", None), use_bias=bias, init=init, dtype=dtype, rngs=rngs)

        self.text = TextTower(
            spec.text,
            vocab_size=spec.vocab_size,
            num_positions=spec.num_positions,
            dtype=dtype,
            stack=stack,
            rngs=rngs,
        )
        self.vision = VisionEncoder(spec.vision, dtype=dtype, stack=stack, rngs=rngs)
        self.text_projection = projection(spec.text, spec.text_width)
        self.image_projection = projection(spec.vision.tower, spec.image_width)
        axes = (None,) * len(spec.logit_shape)
        self.log_factor = nnx.Param(jnp.full(spec.logit_shape, spec.log_factor, jnp.float32), axes=axes)
        self.logit_bias = nnx.Param(jnp.zeros(spec.logit_shape, jnp.float32), axes=axes) if spec.logit_bias else None
        self.spec = spec
        self.hidden_size = spec.text.hidden_size
        self.vocab_size = spec.vocab_size
        self.max_length = spec.num_positions
        self.image_vectors = 1  # an image is one token of a row

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        token_types: jax.Array | None = None,
        *,
        dropout: DropoutKeys | None = None,
        images: RowImages | None = None,
    ) -> jax.Array:
        """Texts and images of packed rows, in the space where they are compared: [rows, length, width].

        At a word its projected hidden state, which is the text's vector at the token that ends it; at the token of an
        image its projected vector. Words do not see images, whatever their segment. Arguments as in `Family`.
        """
        is_word = jnp.ones(tokens.shape, bool) if images is None else jnp.asarray(images.places) < 0
        hidden = self.text(
            tokens, jnp.where(is_word, segment_ids, 0), jnp.where(is_word, positions, 0), dropout=dropout
        )
        texts = hidden if self.text_projection is None else self.text_projection(hidden)
        if images is None:
            return texts
        pooled = self.vision.read_rows(images, dropout=dropout)
        vectors = pooled if self.image_projection is None else self.image_projection(pooled)
        return jnp.where(is_word[..., None], texts, vectors)

    def embed_images(self, pixels: jax.Array) -> jax.Array:
        """The vectors [rows, width] of pixels [rows, height, width, channels], not normalized."""
        vectors = self.vision.pool(self.vision(pixels))
        return vectors if self.image_projection is None else self.image_projection(vectors)

    def embed_texts(self, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        """The vectors [rows, width] of int32 [rows, length] tokens, not normalized.

        A row is one text. SigLIP was trained on rows of its full length whose padding is part of the text: there
        `segment_ids` are all 1, and the last token's hidden state is the vector.
        Raises ValueError for a text without the token that ends it (inside jit, its vector is NaN instead).
        """
        return self.pool_texts(self.text(tokens, segment_ids, positions), tokens, segment_ids)

    def pool_texts(self, hidden: jax.Array, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """`embed_texts` from hidden states [rows, length, hidden_size] of the text network."""
        vectors = hidden[:, -1]
        if self.spec.end_id != -1:
            vectors = _at_end(hidden, tokens, segment_ids, self.spec.end_id)
        return vectors if self.text_projection is None else self.text_projection(vectors)

    def similarity(self, texts: jax.Array, images: jax.Array) -> jax.Array:
        """fp32 logits [texts, images]: exp(log_factor) · cosine + logit_bias, of the vectors of the methods above."""

        def unit(x: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        logits = jnp.einsum("td,id->ti", unit(texts), unit(images)) * jnp.exp(self.log_factor[...])
        return logits if self.logit_bias is None else logits + self.logit_bias[...]


def _at_end(hidden: jax.Array, tokens: jax.Array, segment_ids: jax.Array, end_id: int | None) -> jax.Array:
    """The hidden states [rows, hidden] of the token that ends each text."""
    if end_id is None:
        ends = jnp.where(segment_ids != 0, tokens, -1)
        return jnp.take_along_axis(hidden, ends.argmax(-1)[:, None, None], axis=1)[:, 0]
    is_end = (tokens == end_id) & (segment_ids != 0)
    check_ends(is_end, end_id)
    vectors = jnp.take_along_axis(hidden, is_end.argmax(-1)[:, None, None], axis=1)[:, 0]
    return jnp.where(is_end.any(-1, keepdims=True), vectors, jnp.nan)


def check_ends(is_end: Array, end_id: int) -> None:
    """Raises ValueError for a row without an end, bool [rows, length]; tracers, whose values are unknown, pass."""
    if isinstance(is_end, jax.core.Tracer):
        return
    lacking = np.flatnonzero(~np.asarray(is_end).any(-1))
    if lacking.size:
        raise ValueError(
            f"text {lacking[0]} has no token {end_id}, which ends a text (eos_token_id in config.json), so it has no "
            "vector: tokenize it with its special tokens."
        )


def tower_of(config: PretrainedConfig, causal: bool) -> TowerSpec:
    """The stack of a text_config or vision_config of CLIP or SigLIP."""
    return TowerSpec(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_size=config.intermediate_size,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
        causal=causal,
        attention_dropout=config.attention_dropout,
        initializer_range=getattr(config, "initializer_range", 0.02),
    )


def image_family(
    mapping: tuple[Rule, ...], spec: Callable[[PretrainedConfig], VisionSpec], architecture: str
) -> Family:
    """The family of a pair's image network alone; `mapping` is the pair's.

    The head on the pooled vector is of this package: transformers' own reads the mean of the patches.
    """

    def build(
        config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs
    ) -> Backbone:
        return VisionEncoder(spec(config), dtype=dtype, stack=stack, rngs=rngs)

    def head(config: PretrainedConfig) -> HeadSpec:
        return HeadSpec(initializer_range=getattr(config, "initializer_range", 0.02))

    output = linear("classifier", "output")
    return Family(
        build=build,
        prefix=VISION,
        mapping=image_rules(mapping),
        heads={"image": Head("ForImageClassification", head, output, architecture=architecture)},
        pooling="cls",
        base_class=architecture,
        kind="image",
    )
