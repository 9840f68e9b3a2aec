"""Layers of the sequence head: transformer, HSTU and GRU, each the same in a packed row as alone.

All are called as the layers of a `Stack`: (x [rows, length, hidden_size], context, dropout keys) -> x.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.adapters.adapter_config import Activation, Kind, Norm
from instructrec_jax.backbones.attention import attention, pointwise_attention
from instructrec_jax.backbones.decoder import Context
from instructrec_jax.backbones.layers import DropoutKeys, LayerNorm, Linear, activation, dropout, normal

EPS = 1e-6


@dataclass(frozen=True)
class LayerSpec:
    """Sizes and variants of a layer. `norm`, `activation`, `mlp_factor`, `attention_dropout`: of a transformer's."""

    hidden_size: int
    num_heads: int
    num_layers: int  # of the network: more layers start with smaller outputs
    max_length: int  # positions of a sequence
    dropout: float
    norm: Norm = "pre"
    activation: Activation = "gelu"
    mlp_factor: int = 4  # width of the feed-forward layer / hidden_size
    attention_dropout: float = 0.0
    relative_positions: bool = False  # a learned bias of attention scores for each distance and head
    causal: bool = True  # a position sees earlier ones only

    @property
    def input_range(self) -> float:
        return float(self.hidden_size**-0.5)

    @property
    def output_range(self) -> float:
        """Of what is added to the residual stream (GPT-2)."""
        return float(self.input_range / (2 * self.num_layers) ** 0.5)


def new_layer(kind: Kind, spec: LayerSpec, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
    return {"transformer": TransformerLayer, "hstu": HSTULayer, "gru": GRULayer}[kind](spec, dtype, rngs)


class RelativePositions(nnx.Module):
    """A bias of attention scores, learned for each distance and head; zero at first (Shaw et al., 2018; T5)."""

    def __init__(self, spec: LayerSpec):
        self.ahead = 0 if spec.causal else spec.max_length - 1  # farthest key after the query
        shape = (spec.max_length + self.ahead, spec.num_heads)
        self.table = nnx.Param(jnp.zeros(shape, jnp.float32), axes=(None, None))

    def __call__(self, positions: jax.Array) -> jax.Array:
        """positions int32 [rows, length] -> float32 [rows, heads, queries, keys]."""
        distance = positions[:, :, None] - positions[:, None, :] + self.ahead
        # distances beyond the table are of other segments, or of keys that a causal query does not see
        return self.table[...][jnp.clip(distance, 0, len(self.table[...]) - 1)].transpose(0, 3, 1, 2)


class TransformerLayer(nnx.Module):
    """Self-attention and a feed-forward network, each with a residual connection.

    pre: x = x + f(norm(x)), as in SASRec's paper and GPT-2; post: x = norm(x + f(x)), as in BERT4Rec.
    The feed-forward network is W₂ a(W₁ x), or W₂ (silu(W₁ x) · V x) for swiglu (Shazeer, 2020).
    """

    def __init__(self, spec: LayerSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, mlp = spec.hidden_size, spec.mlp_factor * spec.hidden_size
        init, init_out = normal(spec.input_range), normal(spec.output_range)
        gated = 2 if spec.activation == "swiglu" else 1
        self.attention_norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.qkv = Linear(width, width, parts=3, axes=("embed", "heads"), init=init, dtype=dtype, rngs=rngs)
        self.attention_output = Linear(width, width, axes=("heads", "embed"), init=init_out, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.mlp_in = Linear(width, mlp, parts=gated, axes=("embed", "mlp"), init=init, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(mlp, width, axes=("mlp", "embed"), init=init_out, dtype=dtype, rngs=rngs)
        self.relative = RelativePositions(spec) if spec.relative_positions else None
        self.spec = spec

    def __call__(self, x: jax.Array, context: Context, keys: DropoutKeys | None) -> jax.Array:
        spec, pre = self.spec, self.spec.norm == "pre"
        y = self._attended(self.attention_norm(x) if pre else x, context, keys)
        x = x + dropout(y, spec.dropout, _site(keys, 1))
        x = x if pre else self.attention_norm(x)
        y = self._transformed(self.mlp_norm(x) if pre else x)
        x = x + dropout(y, spec.dropout, _site(keys, 2))
        return x if pre else self.mlp_norm(x)

    def _attended(self, x: jax.Array, context: Context, keys: DropoutKeys | None) -> jax.Array:
        y = self.qkv(x).reshape(*x.shape[:2], 3, self.spec.num_heads, -1)
        mixed = attention(
            y[:, :, 0],
            y[:, :, 1],
            y[:, :, 2],
            segment_ids=context.segment_ids,
            positions=context.positions,
            bias=None if self.relative is None else self.relative(context.positions),
            causal=self.spec.causal,
            dropout_rate=self.spec.attention_dropout,
            dropout_keys=_site(keys, 0),
        )
        return self.attention_output(mixed.reshape(x.shape))

    def _transformed(self, x: jax.Array) -> jax.Array:
        y = self.mlp_in(x)
        if self.spec.activation == "swiglu":
            return self.mlp_out(jax.nn.silu(y[:, :, 0]) * y[:, :, 1])
        return self.mlp_out(activation(self.spec.activation)(y))


class HSTULayer(nnx.Module):
    """x + W₂ (norm(a(Q Kᵀ + bias) V / n) · U), with U, V, Q, K = silu(W₁ norm(x)), n = max_length, and a = silu.

    Zhai et al. (2024), "Actions Speak Louder than Words", equations 1 to 3, without times: the attention weights are no
    distribution, so that how often something happened is not normalized away.
    """

    def __init__(self, spec: LayerSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, init, init_out = spec.hidden_size, normal(spec.input_range), normal(spec.output_range)
        self.norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.uvqk = Linear(width, width, parts=4, axes=("embed", "heads"), init=init, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.output = Linear(width, width, axes=("heads", "embed"), init=init_out, dtype=dtype, rngs=rngs)
        self.relative = RelativePositions(spec) if spec.relative_positions else None
        self.spec = spec

    def __call__(self, x: jax.Array, context: Context, keys: DropoutKeys | None) -> jax.Array:
        y = jax.nn.silu(self.uvqk(self.norm(x)))
        v, q, k = (y[:, :, part].reshape(*x.shape[:2], self.spec.num_heads, -1) for part in (1, 2, 3))
        mixed = pointwise_attention(
            q,
            k,
            v,
            segment_ids=context.segment_ids,
            positions=context.positions,
            bias=None if self.relative is None else self.relative(context.positions),
            causal=self.spec.causal,
            count=self.spec.max_length,
        )
        gated = self.attention_norm(mixed.reshape(x.shape)) * y[:, :, 0]
        return x + self.output(dropout(gated, self.spec.dropout, _site(keys, 1)))


class GRULayer(nnx.Module):
    """A gated recurrent unit (Cho et al., 2014), in the form of torch.nn.GRU; its state is zero before a segment.

    r, z = σ(W x + U h);  n = tanh(W x + r · (U h));  h = (1 − z) · n + z · h
    """

    def __init__(self, spec: LayerSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, init = spec.hidden_size, normal(spec.input_range)
        # Not split over tensor parallelism: every step needs the whole state, and XLA's gradients of split weights were
        # wrong (the property test on 8 devices).
        self.inputs = Linear(width, width, parts=3, axes=("embed", None), init=init, dtype=dtype, rngs=rngs)
        self.states = Linear(width, width, parts=3, axes=("embed", None), init=init, dtype=dtype, rngs=rngs)
        self.spec = spec

    def __call__(self, x: jax.Array, context: Context, keys: DropoutKeys | None) -> jax.Array:
        def step(h: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            own, first = inputs
            h = jnp.where(first[:, None], 0, h)
            old = self.states(h)
            reset, update = (jax.nn.sigmoid(own[:, part] + old[:, part]) for part in (0, 1))
            h = (1 - update) * jnp.tanh(own[:, 2] + reset * old[:, 2]) + update * h
            return h, h

        over_time = jnp.moveaxis(self.inputs(x), 1, 0), context.positions.T == 0
        _, states = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), over_time)
        return dropout(jnp.moveaxis(states, 0, 1), self.spec.dropout, _site(keys, 1))


def _site(keys: DropoutKeys | None, number: int) -> DropoutKeys | None:
    return None if keys is None else keys.fold(number)
