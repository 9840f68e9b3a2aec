"""Targets in a batch, in the two forms that several tasks share."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from instructrec_jax.data.batch import PerText, PerToken


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextTargets:
    """A target for each text.

    Attributes:
      targets: [texts] or [texts, outputs], in the dtype of the task's loss.
      weights: float32 [texts], 1; 0 where a segment has no text.
    """

    targets: PerText
    weights: PerText


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenLabels:
    """A label for each token.

    Attributes:
      labels: int32 [tokens].
      supervised: int32 [tokens], 1 where the label counts.
    """

    labels: PerToken
    supervised: PerToken

    @property
    def weights(self) -> jax.Array:
        """float32, `supervised` as weights of the loss."""
        return jnp.asarray(self.supervised, jnp.float32)
