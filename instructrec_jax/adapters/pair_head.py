"""The head of a pair of networks: unit vectors of captions and images, and their similarity."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.dual_encoder import capped_scale, log_temperature, unit_length
from instructrec_jax.adapters.heads import pool_segments
from instructrec_jax.arrays import Array
from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.backbones.row_images import RowImages


class PairHead(nnx.Module):
    """Pools what an `ImageText` returns. The factor of similarities is the network's, as is their bias if it has one.

    Args:
      capped: whether the factor stays at most 100, as in CLIP.
      bias: where the bias of similarities starts, in a network that has none; None: there is no bias.
    """

    def __init__(self, *, capped: bool, bias: float | None = None):
        self.capped = capped
        self.bias = None if bias is None else nnx.Param(jnp.full((), bias, jnp.float32), axes=())

    def __call__(self, hidden: jax.Array, segment_ids: Array, images: RowImages | None, segments: int) -> jax.Array:
        """hidden [rows, length, width] -> float32 unit vectors [rows, segments, 2, width]: caption, then image.

        A caption's vector is at its last token. Zeros where a segment has no caption, or no image.
        """
        is_image = jnp.zeros(segment_ids.shape, bool) if images is None else jnp.asarray(images.places) >= 0
        sides = [jnp.where(chosen, segment_ids, 0) for chosen in (~is_image, is_image)]
        pooled = [pool_segments(hidden, side, "lasttoken", segments) for side in sides]
        return unit_length(jnp.stack(pooled, axis=2).astype(jnp.float32))

    def scale(self, backbone: ImageText) -> jax.Array:
        """The factor of cosines, a scalar."""
        log_factor = backbone.log_factor[...].reshape(())
        return capped_scale(log_factor) if self.capped else jnp.exp(log_factor)

    def logits(self, backbone: ImageText, captions: jax.Array, images: jax.Array) -> jax.Array:
        """float32 [captions, images], of unit vectors."""
        product = jnp.einsum("cd,id->ci", captions, images, precision=jax.lax.Precision.HIGHEST)
        logits = self.scale(backbone) * product
        for bias in (backbone.logit_bias, self.bias):
            logits = logits if bias is None else logits + bias[...].reshape(())
        return logits


class PairVectorHead(nnx.Module):
    """One vector for each text, image, or text with an image: the normalized sum of the unit vectors that are there.

    So a text, an image and a text with an image are compared by cosine. Also holds the temperature of the softmax.

    Raises ValueError for a temperature below 0.01.
    """

    def __init__(self, *, temperature: float):
        self.pair = PairHead(capped=True)
        self.log_temperature = log_temperature(temperature)

    def __call__(self, hidden: jax.Array, segment_ids: Array, images: RowImages | None, segments: int) -> jax.Array:
        """hidden [rows, length, width] -> float32 unit vectors [rows, segments, width]; zeros for absent segments."""
        return unit_length(self.pair(hidden, segment_ids, images, segments).sum(2))

    def scale(self) -> jax.Array:
        """Scale of the cosines: 1 / temperature, at most 100."""
        return capped_scale(-self.log_temperature[...])


def start_for_sigmoid(backbone: ImageText, batch_size: int) -> PairHead:
    """The head for the sigmoid loss on a network without bias, or without weights.

    The bias is log(1 / (n − 1)) of a batch of n pairs, so that at first the logits say how rare a pair is; a network
    without weights also gets SigLIP's factor of 10 (Zhai et al., 2023, "Sigmoid Loss for Language Image Pre-Training",
    section 3.2, where the bias is −10 for a batch of 32,768: log(1 / 32,767) is −10.4).
    """
    bias = -float(np.log(max(batch_size - 1, 1)))
    if backbone.logit_bias is None:
        return PairHead(capped=False, bias=bias)
    backbone.logit_bias[...] = jnp.full(backbone.spec.logit_shape, bias, jnp.float32)
    backbone.log_factor[...] = jnp.full(backbone.spec.logit_shape, np.log(10), jnp.float32)
    return PairHead(capped=False)
