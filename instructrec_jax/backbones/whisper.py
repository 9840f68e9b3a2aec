"""Whisper (Radford et al., 2023): convolutions over a spectrogram, then BART's layers with their norms in front."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.bart import EPS, BartSpec, Layer, layer_rules
from instructrec_jax.backbones.family import (
    Backbone,
    Family,
    Head,
    HeadSpec,
    LMHeadSpec,
    Rule,
    embedding,
    linear,
    norm,
    refuse,
)
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    Embedding,
    LayerNorm,
    Stack,
    StackOptions,
    activation,
    dropout,
    normal,
    product,
)
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.backbones.seq2seq import AttentionSpec, Context, EncoderDecoder, LayerCache, Side, encoder_options
from instructrec_jax.hf_types import PretrainedConfig

KERNEL, STRIDE = 3, 2  # frames; the second convolution halves them
LONGEST_WAVE = 10000.0


@dataclass(frozen=True)
class SoundSpec:
    """Sizes of a `SoundEncoder`."""

    layers: BartSpec
    mels: int
    positions: int  # vectors of a sound

    @property
    def frames(self) -> int:
        return STRIDE * self.positions


class Convolution(nnx.Module):
    """A convolution over 3 frames: [sounds, frames, in] → [sounds, frames / stride, out], with zeros at both ends."""

    def __init__(self, inputs: int, width: int, stride: int, std: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(normal(std)(rngs.params(), (KERNEL, inputs, width)), axes=(None, None, "embed"))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32), axes=("embed",))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        frames = x.shape[1]
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (0, 0)))
        windows = jnp.concatenate([padded[:, k : k + frames : self.stride] for k in range(KERNEL)], axis=-1)
        kernel = self.kernel[...].astype(self.dtype)
        return product(windows, kernel.reshape(-1, kernel.shape[-1])) + self.bias[...].astype(self.dtype)


class SoundEncoder(Backbone):
    """The network of sounds, alone or with Whisper's decoder. It has no words: `vocab_size` is 0.

    A call takes float spectrograms [sounds, frames, mels] (`data.media.sounds`) and returns hidden states
    [sounds, frames / 2, hidden_size] in `dtype`.

    Raises ValueError for another number of frames or mels than the network's.
    """

    def __init__(self, spec: SoundSpec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        width, std = spec.layers.attention.hidden_size, spec.layers.initializer_range
        self.first = Convolution(spec.mels, width, 1, std, dtype, rngs)
        self.second = Convolution(width, width, STRIDE, std, dtype, rngs)
        self.positions = nnx.Param(jnp.asarray(sinusoids(spec.positions, width)), axes=(None, "embed"))
        self.layers = Stack(
            ["layer"] * spec.layers.num_layers,
            lambda kind, rngs: Layer(spec.layers, dtype, rngs),
            options=stack,
            rngs=rngs,
        )
        self.final_norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.spec = spec
        self.hidden_size = width
        self.vocab_size = 0
        self.max_length = spec.positions
        self.image_vectors = 1  # alone, a sound is one token of a row

    def __call__(self, sounds: jax.Array, *, dropout: DropoutKeys | None = None) -> jax.Array:
        spec = self.spec
        if sounds.shape[1:] != (spec.frames, spec.mels):
            raise ValueError(
                f"spectrograms must be [sounds, {spec.frames}, {spec.mels}], as max_source_positions and num_mel_bins "
                f"in config.json say, but have shape {list(sounds.shape)}: see preprocessor_config.json."
            )
        gelu = activation("gelu")
        x = gelu(self.second(gelu(self.first(sounds))))
        x = x + self.positions[...].astype(x.dtype)
        x = _dropout(x, spec.layers.dropout, None if dropout is None else dropout.fold(0))
        ids = jnp.ones(x.shape[:2], jnp.int32)
        numbers = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        return self.final_norm(self.layers(x, Context(ids, numbers, ids, numbers), dropout))

    def read_rows(self, sounds: RowImages, *, dropout: DropoutKeys | None = None) -> jax.Array:
        """The mean hidden state of each sound at its token: [rows, length, hidden_size], zeros elsewhere."""
        hidden = self(sounds.flat, dropout=sounds.keys(dropout, 1, self.spec.positions))
        return sounds.laid(hidden.mean(1, dtype=jnp.float32).astype(hidden.dtype)[:, None])


_dropout = dropout  # `dropout` names the keys in the call signature above


class TextSide(nnx.Module):
    """The decoder: word embeddings → hidden states."""

    def __init__(self, spec: BartSpec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        width, init = spec.attention.hidden_size, normal(spec.initializer_range)
        self.position_embeddings = Embedding(
            spec.max_length, width, init=init, axes=(None, "embed"), dtype=dtype, rngs=rngs
        )
        self.layers = Stack(
            ["layer"] * spec.num_layers, lambda kind, rngs: Layer(spec, dtype, rngs), options=stack, rngs=rngs
        )
        self.final_norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.spec = spec

    def __call__(
        self, x: jax.Array, context: Context, dropout: DropoutKeys | None, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        x = x + self.position_embeddings(context.positions)
        x = _dropout(x, self.spec.dropout, None if dropout is None else dropout.fold(0))
        if cache is None:
            return self.final_norm(self.layers(x, context, dropout)), cache
        x, cache = self.layers(x, context, dropout, cache, context.index)
        return self.final_norm(x), cache


class Whisper(EncoderDecoder):
    """A sound has `image_vectors` tokens in a row of texts, whose numbers do not matter."""

    encoder: Any  # a `SoundEncoder`: other encoders, and the base class, start from embedded words

    def __init__(
        self, sound: SoundSpec, text: BartSpec, words: Embedding, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs
    ):
        super().__init__(
            words,
            cast(Side, SoundEncoder(sound, dtype=dtype, stack=encoder_options(stack), rngs=rngs)),
            TextSide(text, dtype=dtype, stack=stack, rngs=rngs),
            cache_shape=(text.attention.num_heads, text.attention.head_dim),
            max_length=sound.positions,
            max_target_length=text.max_length,
            dtype=dtype,
        )
        self.image_vectors = sound.positions

    def encode(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        *,
        dropout: DropoutKeys | None = None,
        images: RowImages | None = None,
    ) -> jax.Array:
        """int32 [rows, length] each, and the rows' sounds -> [rows, length, hidden_size].

        Raises ValueError without sounds.
        """
        if images is None:
            raise ValueError("Whisper reads sounds, but the batch has none.")
        vectors = self.image_vectors
        return images.laid(self.encoder(images.flat, dropout=images.keys(dropout, vectors, vectors)))


def sinusoids(count: int, width: int) -> np.ndarray:
    """float32 [count, width]: sines, then cosines, of waves from 2π to 20,000π positions long."""
    rates = np.exp(-math.log(LONGEST_WAVE) / max(1, width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(count)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


# ---------------------------------------------------------------- configs and tensor names


def _side_spec(config: PretrainedConfig, side: str) -> BartSpec:
    width, std, heads = config.d_model, config.init_std, getattr(config, f"{side}_attention_heads")
    if width % heads or width % 2:
        raise ValueError(
            f"config.json: d_model is {width}, but must be even and a multiple of {side}_attention_heads, {heads}."
        )
    if getattr(config, f"{side}_layerdrop"):
        raise ValueError(
            f"config.json has {side}_layerdrop={getattr(config, f'{side}_layerdrop')}, but layer dropout is not "
            f"implemented: set {side}_layerdrop to 0.0 to train without it (nothing else depends on it)."
        )
    attention = AttentionSpec(
        hidden_size=width,
        num_heads=heads,
        head_dim=width // heads,
        scale=(width // heads) ** -0.5,
        use_bias=True,
        key_bias=False,
        dropout=config.attention_dropout,
        query_range=std,
        key_range=std,
        output_range=std,
    )
    return BartSpec(
        attention=attention,
        decoder=side == "decoder",
        num_layers=getattr(config, f"{side}_layers"),
        mlp_size=getattr(config, f"{side}_ffn_dim"),
        activation=config.activation_function,
        max_length=config.max_target_positions,
        embedding_scale=1.0,
        dropout=config.dropout,
        activation_dropout=config.activation_dropout,
        initializer_range=std,
        pre_norm=True,
    )


def _sound_spec(config: PretrainedConfig) -> SoundSpec:
    activation(config.activation_function)
    refuse(config, apply_spec_augment=False, use_weighted_layer_sum=False)
    return SoundSpec(_side_spec(config, "encoder"), config.num_mel_bins, config.max_source_positions)


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    # transformers' Whisper does not read scale_embedding
    refuse(config, is_encoder_decoder=True, tie_word_embeddings=True)
    init, padding_id = normal(config.init_std), config.pad_token_id
    words = Embedding(config.vocab_size, config.d_model, init=init, padding_id=padding_id, dtype=dtype, rngs=rngs)
    return Whisper(_sound_spec(config), _side_spec(config, "decoder"), words, dtype, stack, rngs)


def build_encoder(
    config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs
) -> Backbone:
    """The network of sounds alone."""
    return SoundEncoder(_sound_spec(config), dtype=dtype, stack=stack, rngs=rngs)


def lm_head(config: PretrainedConfig) -> LMHeadSpec:
    return LMHeadSpec(initializer_range=config.init_std)


def audio_head(config: PretrainedConfig) -> HeadSpec:
    """The mean of projected hidden states is the projection of their mean."""
    return HeadSpec(dense=True, dense_size=config.classifier_proj_size, initializer_range=config.init_std)


ENCODER = "encoder."
ENCODER_RULES = (
    *(
        Rule(f"{ENCODER}{theirs}.{tensor}", f"{ENCODER}{ours}.{name}", transform)
        for theirs, ours in (("conv1", "first"), ("conv2", "second"))
        for tensor, name, transform in (("weight", "kernel", "convolution"), ("bias", "bias", "none"))
    ),
    Rule(f"{ENCODER}embed_positions.weight", f"{ENCODER}positions"),
    *layer_rules("encoder"),
    *norm(f"{ENCODER}layer_norm", f"{ENCODER}final_norm"),
)
CLASSIFIER = "ForAudioClassification"
ENCODER_FAMILY = Family(
    build=build_encoder,
    prefix=ENCODER,
    mapping=tuple(
        replace(rule, name=rule.name.removeprefix(ENCODER), path=rule.path.removeprefix(ENCODER))
        for rule in ENCODER_RULES
    ),
    heads={
        "image": Head(
            CLASSIFIER,
            audio_head,
            (*linear("projector", "dense"), *linear("classifier", "output")),
            architecture=f"Whisper{CLASSIFIER}",
        )
    },
    base_class=f"Whisper{CLASSIFIER}",
    kind="sound",
    layouts=((ENCODER, ENCODER), (f"model.{ENCODER}", ENCODER)),
)


def variant(config: PretrainedConfig) -> Family:
    """The network of sounds alone, where config.json declares that it classifies them."""
    declared = getattr(config, "architectures", None) or ()
    return ENCODER_FAMILY if any(name.endswith(CLASSIFIER) for name in declared) else FAMILY


def tower(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the network of sounds alone."""
    alone = copy.deepcopy(config)
    alone.architectures = [f"Whisper{CLASSIFIER}"]
    return alone


FAMILY = Family(
    build=build,
    prefix="model.",
    mapping=(
        Rule("decoder.embed_tokens.weight", "word_embeddings.table"),
        *ENCODER_RULES,
        *embedding("decoder.embed_positions", "decoder.position_embeddings"),
        *layer_rules("decoder"),
        *norm("decoder.layer_norm", "decoder.final_norm"),
    ),
    heads={"lm": Head("ForConditionalGeneration", lm_head, (Rule("proj_out.weight", "table"),))},
    base_class="WhisperModel",
    kind="encoder_decoder",
    sounds=True,
    tower=tower,
    variant=variant,
)
