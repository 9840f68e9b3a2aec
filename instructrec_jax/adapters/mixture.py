"""Several language models with one vocabulary as one network, whose next-token distribution is their average.

Its hidden states are those of the members side by side, its cache has the layers of all of them, and its head averages
their logits (`tasks.averaging` has the formulas). So losses, likelihoods, sampling and beams see one language model.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.heads import LMHead
from instructrec_jax.adapters.losses import chunk_size
from instructrec_jax.arrays import Array
from instructrec_jax.backbones.decoder import Decoder, DecoderCache
from instructrec_jax.backbones.gpt2 import GPT2
from instructrec_jax.backbones.layers import DropoutKeys


class MixtureBackbone(nnx.Module):
    """Hidden states of the members side by side, [rows, length, Σ hidden]; calls as those of `backbones.decoder`."""

    def __init__(self, members: Sequence[Decoder | GPT2]):
        self.members = nnx.List(members)
        self.hidden_size = sum(member.hidden_size for member in members)
        self.prompt_type = max(member.prompt_type for member in members)  # the others take no notice of token types

    def empty_cache(self, rows: int, capacity: int) -> DecoderCache:
        caches = [member.empty_cache(rows, capacity) for member in self.members]
        return {**caches[0], "layers": _joined(caches)}

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        token_types: jax.Array,
        *,
        dropout: DropoutKeys | None = None,
        cache: DecoderCache | None = None,
    ) -> jax.Array | tuple[jax.Array, DecoderCache]:
        inputs = tokens, segment_ids, positions, token_types
        if cache is None:
            return jnp.concatenate([member(*inputs, dropout=dropout) for member in self.members], -1)
        found = [
            member(*inputs, dropout=dropout, cache={**cache, "layers": _part(cache, number)})
            for number, member in enumerate(self.members)
        ]
        hidden, caches = [each[0] for each in found], [each[1] for each in found]
        return jnp.concatenate(hidden, -1), {**caches[0], "layers": _joined(caches)}


def _joined(caches: Sequence[DecoderCache]) -> dict[str, dict[str, jax.Array]]:
    return {f"{n}.{block}": x for n, cache in enumerate(caches) for block, x in cache["layers"].items()}


def _part(cache: DecoderCache, number: int) -> dict[str, dict[str, jax.Array]]:
    start = f"{number}."
    return {block.removeprefix(start): x for block, x in cache["layers"].items() if block.startswith(start)}


class MixtureHead(nnx.Module):
    """Averaged logits of the next token.

    Args:
      weights: of the members, with the sum 1.
      average: "probability": log Σ w softmax(z), plus Σ w logsumexp(z); "logit": Σ w z.
    """

    def __init__(
        self,
        heads: Sequence[LMHead],
        sizes: Sequence[int],
        weights: Sequence[float],
        average: Literal["probability", "logit"],
    ):
        self.heads = nnx.List(heads)
        self.sizes, self.weights, self.average = tuple(sizes), tuple(weights), average

    def vocab_size(self, backbone: MixtureBackbone) -> int:
        return self.heads[0].vocab_size(backbone.members[0])

    def __call__(self, backbone: MixtureBackbone, hidden: jax.Array) -> jax.Array:
        """hidden [..., Σ hidden] -> fp32 logits [..., vocab]."""
        parts = jnp.split(hidden, np.cumsum(self.sizes)[:-1].tolist(), -1)
        each = zip(self.heads, backbone.members, parts, strict=True)
        z = jnp.stack([head(member, part) for head, member, part in each])
        w = jnp.array(self.weights, jnp.float32).reshape(-1, *[1] * hidden.ndim)
        if self.average == "logit":
            return (w * z).sum(0)
        normalizer = jax.nn.logsumexp(z, -1, keepdims=True)
        return jax.nn.logsumexp(z - normalizer, 0, b=w) + (w * normalizer).sum(0)

    def token_losses(
        self, backbone: MixtureBackbone, hidden: jax.Array, labels: Array, weights: Array
    ) -> tuple[jax.Array, jax.Array]:
        """As `losses.token_losses`, chunk by chunk along the length."""
        rows, length, _ = hidden.shape
        size = chunk_size(rows, length, self.vocab_size(backbone) * len(self.heads), None)

        def chunks(x: Array) -> jax.Array:
            padded = jnp.pad(x, ((0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)))
            return jnp.moveaxis(padded.reshape(rows, -1, size, *x.shape[2:]), 1, 0)

        def one(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            z, label = self(backbone, part[0]), part[1]
            own = jnp.take_along_axis(z, label[..., None], -1)[..., 0]
            return jax.nn.logsumexp(z, -1) - own, z.argmax(-1) == label

        loss, hit = jax.lax.map(one, (chunks(hidden), chunks(labels)))
        whole = [jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :length] for x in (loss, hit)]
        counts = jnp.asarray(weights) != 0
        return jnp.where(counts, whole[0], 0), whole[1] & counts
