"""The pre-norm stack of image networks and of the text networks beside them, each described by a `TowerSpec`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.encoder import Attention, Context, check_positions
from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, embedding, linear, norm
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    Embedding,
    LayerNorm,
    Linear,
    Stack,
    StackOptions,
    activation,
    dropout,
    normal,
)
from instructrec_jax.hf_types import PretrainedConfig


@dataclass(frozen=True)
class TowerSpec:
    """Sizes and variants of a stack of `PreNormLayer`s."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    activation: str
    eps: float
    qkv_bias: bool = True
    causal: bool = False
    gated: bool = False  # the MLP is activation(gate) · up (SwiGLU)
    layer_scale: float | None = None  # initial factors of what a layer adds (DINOv2); None: no such factors
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02


class MLP(nnx.Module):
    """outer(act(inner(x))), or outer(act(gate) · up), where `inner` computes both [gate, up]."""

    def __init__(self, spec: TowerSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, wide, init = spec.hidden_size, spec.mlp_size, normal(spec.initializer_range)
        parts = 2 if spec.gated else 1
        self.inner = Linear(width, wide, parts=parts, axes=("embed", "mlp"), init=init, dtype=dtype, rngs=rngs)
        self.outer = Linear(wide, width, axes=("mlp", "embed"), init=init, dtype=dtype, rngs=rngs)
        self.spec = spec

    def __call__(self, x: jax.Array, keys: DropoutKeys | None = None) -> jax.Array:
        y, act = self.inner(x, keys), activation(self.spec.activation)
        return self.outer(act(y[:, :, 0]) * y[:, :, 1] if self.spec.gated else act(y), keys)


class PreNormLayer(nnx.Module):
    """x = x + a · attention(norm(x)); x = x + b · mlp(norm(x)), with a and b only under `TowerSpec.layer_scale`."""

    def __init__(self, spec: TowerSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(spec.hidden_size, eps=spec.eps, dtype=dtype)
        self.attention = Attention(spec, dtype, rngs)
        self.attention_factor = self._scale(spec)
        self.mlp_norm = LayerNorm(spec.hidden_size, eps=spec.eps, dtype=dtype)
        # two names, because the tensors of a gated MLP have other names too
        self.mlp = None if spec.gated else MLP(spec, dtype, rngs)
        self.gated_mlp = MLP(spec, dtype, rngs) if spec.gated else None
        self.mlp_factor = self._scale(spec)
        self.spec = spec

    @staticmethod
    def _scale(spec: TowerSpec) -> nnx.Param[jax.Array] | None:
        if spec.layer_scale is None:
            return None
        return nnx.Param(jnp.full((spec.hidden_size,), spec.layer_scale, jnp.float32), axes=("embed",))

    def __call__(self, x: jax.Array, context: Context, keys: DropoutKeys | None) -> jax.Array:
        def added(y: jax.Array, scale: nnx.Param[jax.Array] | None, number: int) -> jax.Array:
            y = dropout(y, self.spec.hidden_dropout, site(number))
            return y if scale is None else y * scale[...].astype(y.dtype)

        def site(number: int) -> DropoutKeys | None:
            return None if keys is None else keys.fold(number)

        x = x + added(self.attention(self.attention_norm(x), context, site(0)), self.attention_factor, 1)
        y = self.mlp_norm(x)
        for mlp in (self.mlp, self.gated_mlp):
            y = y if mlp is None else mlp(y, keys)
        return x + added(y, self.mlp_factor, 2)


def tower_layers(spec: TowerSpec, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs) -> Stack:
    """The layers of a tower. Raises ValueError for an unknown activation and a width that the heads do not divide."""
    activation(spec.activation)
    if spec.hidden_size % spec.num_heads:
        raise ValueError(
            f"config.json: the hidden size, {spec.hidden_size}, must be a multiple of the number of attention heads, "
            f"{spec.num_heads}."
        )
    return Stack(
        ["layer"] * spec.num_layers, lambda kind, rngs: PreNormLayer(spec, dtype, rngs), options=stack, rngs=rngs
    )


class TextTower(Backbone):
    """The text network beside an image network, or alone: words, positions, pre-norm layers, a final norm.

    A call takes int32 [rows, length] arrays (see `Family`) and returns hidden states [rows, length, hidden_size]. The
    vector of a text is that of its last token, through the `head` if there is one (`pool`).

    Args:
        head: width of the linear layer of the vector (SigLIP alone); 0: there is none.
    """

    def __init__(
        self,
        spec: TowerSpec,
        *,
        vocab_size: int,
        num_positions: int,
        dtype: DTypeLike,
        stack: StackOptions,
        rngs: nnx.Rngs,
        head: int = 0,
    ):
        init = normal(spec.initializer_range)
        self.word_embeddings = Embedding(vocab_size, spec.hidden_size, init=init, dtype=dtype, rngs=rngs)
        self.position_embeddings = Embedding(
            num_positions, spec.hidden_size, init=init, axes=(None, "embed"), dtype=dtype, rngs=rngs
        )
        self.layers = tower_layers(spec, dtype, stack, rngs)
        self.final_norm = LayerNorm(spec.hidden_size, eps=spec.eps, dtype=dtype)
        size = spec.hidden_size
        self.head = Linear(size, head, axes=("embed", None), init=init, dtype=dtype, rngs=rngs) if head else None
        self.hidden_size = spec.hidden_size
        self.vocab_size = vocab_size
        self.max_length = num_positions

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        token_types: jax.Array | None = None,
        *,
        dropout: DropoutKeys | None = None,
    ) -> jax.Array:
        check_positions(positions, self.max_length)
        x = self.word_embeddings(tokens, dropout) + self.position_embeddings(positions)
        return self.final_norm(self.layers(x, Context(segment_ids, positions, None), dropout))

    def pool(self, last: jax.Array) -> jax.Array:
        """The vectors of texts [..., width] from the hidden states of their last tokens."""
        return last if self.head is None else self.head(last)


def layer_rules(name: str, path: str) -> tuple[Rule, ...]:
    """The tensor names of a layer of CLIP and SigLIP. `path` starts the parameters' paths: "text." or "vision."."""
    layer = f"{path}layers.{{layer}}"
    return (
        *norm(f"{name}.layer_norm1", f"{layer}.attention_norm"),
        *linear(f"{name}.self_attn.q_proj", f"{layer}.attention.query"),
        *linear(f"{name}.self_attn.k_proj", f"{layer}.attention.key"),
        *linear(f"{name}.self_attn.v_proj", f"{layer}.attention.value"),
        *linear(f"{name}.self_attn.out_proj", f"{layer}.attention.output"),
        *norm(f"{name}.layer_norm2", f"{layer}.mlp_norm"),
        *linear(f"{name}.mlp.fc1", f"{layer}.mlp.inner"),
        *linear(f"{name}.mlp.fc2", f"{layer}.mlp.outer"),
    )


TEXT_RULES = (
    *embedding("text_model.embeddings.token_embedding", "text.word_embeddings"),
    *embedding("text_model.embeddings.position_embedding", "text.position_embeddings"),
    *layer_rules("text_model.encoder.layers.{layer}", "text."),
    *norm("text_model.final_layer_norm", "text.final_norm"),
)

TEXT = "text_model."


def text_family(
    spec: Callable[[PretrainedConfig], TowerSpec],
    width: Callable[[PretrainedConfig], int],
    architecture: str,
    head: tuple[Rule, ...] = (),
    *,
    padded: bool = False,
) -> Family:
    """The family of a pair's text network alone, an encoder.

    Args:
        width: of the linear layer behind the last token; 0: there is none.
        head: its rules.
        padded: whether texts are padded to their full length, as SigLIP was trained: its last token may be padding.
    """

    def build(
        config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs
    ) -> Backbone:
        names: list[str] = list(getattr(config, "architectures", None) or ())
        if any(name.endswith("WithProjection") for name in names):
            raise ValueError(
                f"config.json names {names[0]}, whose projection is not read alone: use the folder of "
                "the pair (CLIPModel), which task.type contrastive and predict --vectors read."
            )
        return TextTower(
            spec(config),
            vocab_size=config.vocab_size,
            num_positions=config.max_position_embeddings,
            dtype=dtype,
            stack=stack,
            rngs=rngs,
            head=width(config),
        )

    def classifier(config: PretrainedConfig) -> HeadSpec:
        return HeadSpec(pooling="lasttoken", use_pooler=bool(head), initializer_range=0.02)

    # of this package: transformers has no such class
    output = Head("ForSequenceClassification", classifier, linear("classifier", "output"), architecture=architecture)
    rules = (replace(rule, name=rule.name[len(TEXT) :], path=rule.path[len("text.") :]) for rule in TEXT_RULES)
    return Family(
        build=build,
        prefix=TEXT,
        mapping=(*rules, *head),
        heads={"sequence": output},
        pooling="lasttoken",
        base_class=architecture,
        padded=padded,
    )
