"""Attention rollout (Abnar & Zuidema, 2020): how much of each token attention carries to what the prediction reads.

    r_L = p,   r_{l−1} = r_l (A_l + I) / 2,   the score of token t is r_0[t]

A_l are the attention weights of layer l, averaged over heads; half of a token is what its residual connection keeps. p
are the shares in which the number F that is explained reads the last hidden states h, |∂F/∂h_t| / Σ |∂F/∂h|: all at
[CLS] where a head reads that, at one token where a word is predicted.

An encoder–decoder's decoder layer attends to its own tokens and, behind that, to the encoded text, with weights C_l:

    e += d C_l / 2,   d_{l−1} = d / 2 · (D_l + I) / 2,   then e through the layers of the encoder

What is left in d is the share of the tokens that were written before.

Scores are shares, so they say that a word is read, not whether it raises the prediction; and attention need not
explain an output at all (Jain & Wallace, 2019, "Attention is not Explanation").
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.backbones.layers import Stack
from instructrec_jax.data.batch import Batch
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.loader import to_devices
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.explanation.gradients import Attributed
from instructrec_jax.explanation.rows import Asked, Place, Value, packed, sum_of, values_of
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Network
from instructrec_jax.training.state import Tree


class KnownHidden:
    """A network whose last hidden states are known."""

    def __init__(self, network: Network, hidden: jax.Array):
        self.backbone, self.head, self._hidden = network.backbone, network.head, hidden

    def hidden(self, batch: Batch, dropout: object = None) -> jax.Array:
        return self._hidden


class Rollout:
    """Attention rollout for the objectives of a run; a program is compiled once per length of rows.

    Raises ValueError for an ensemble, and for a network that reads more than words.
    """

    def __init__(self, run: Run):
        if why := no_rollout(run):
            raise ValueError(f"{why}: use another --method.")
        self.run = run

    def __call__(self, asked: Sequence[Asked]) -> list[Attributed]:
        """The scores of the tokens of each. Raises BadExample where a number does not depend on the hidden states."""
        rows, found = packed(self.run, asked), {}
        for numbers, batch, weights in rows.blocks(data_shards(self.run.mesh)):
            value, params = asked[0].objective.value, self.run.model.params
            slopes, values, attention = self._compiled(value, params, to_devices(batch, self.run.mesh), weights)
            layers = {name: self._layers(name, each) for name, each in attention.items()}
            for at, row in enumerate(numbers):
                share = self._shares(asked, np.asarray(slopes[at], np.float64), rows.places[row])
                share = rolled(share, {name: [layer[at] for layer in each] for name, each in layers.items()})
                for place in rows.places[row]:
                    number = float(values[at, place.segment])
                    found[place.number] = Attributed(share[place.tokens], np.zeros((0, 0)), number)
        return [found[number] for number in range(len(asked))]

    def _shares(self, asked: Sequence[Asked], slopes: np.ndarray, places: Sequence[Place]) -> np.ndarray:
        """The shares in which the number of each text reads its hidden states, float64 [length]."""
        if not np.isfinite(slopes).all():
            raise ValueError("the model's outputs are not finite: the run diverged. Train it again.")
        found = np.zeros_like(slopes)
        for place in places:
            own = slopes[place.outputs]
            if not own.any():
                said = "the prediction does not depend on the words' hidden states: use another --method."
                raise BadExample("", "not explained", said, asked[place.number].encoded.example.where)
            found[place.outputs] = own / own.sum()
        return found

    def _layers(self, name: str, attention: Any) -> list[np.ndarray]:
        """The weights of each layer, float64 [rows, queries, keys], from the first to the last."""
        stack, part = stacks_of(self.run.model.network.backbone)[name]
        found: dict[int, np.ndarray] = {}
        for block in stack.blocks:
            (values,) = jax.tree.leaves(attention[block.name][part] if part else attention[block.name])
            found |= {layer: np.asarray(values[n], np.float64) for n, layer in enumerate(block.layers)}
        return [found[layer] for layer in range(stack.num_layers)]

    @cached_property
    def _compiled(self) -> Callable[..., tuple[jax.Array, jax.Array, Tree]]:
        """(value or None, params, batch, weights) -> (|∂F/∂h|, [rows, segments] F, weights of attention by block)."""
        graphdef, task, mesh = self.run.model.graphdef, self.run.task, self.run.mesh

        def attended(params: Tree, batch: Batch) -> Tree:
            """The gradients of zeros in each attention, [layers, rows, queries, keys], by `stacks_of` and block."""
            model: Any = nnx.merge(graphdef, params)
            rows, length = batch.texts.tokens.shape
            outputs = batch.outputs.tokens.shape[1]
            shapes = {"layers": (length, length), "encoder": (length, length)}
            shapes |= {"decoder": (outputs, outputs), "cross": (outputs, length)}
            for name, (stack, part) in stacks_of(model.backbone).items():
                for block in stack.blocks:
                    for path, module in nnx.iter_modules(getattr(stack, block.name)):
                        if hasattr(module, "weights") and part in ("", *path[:1]):
                            module.weights = nnx.Param(jnp.zeros((block.count, rows, *shapes[name])))
            noting, zeros, *others = nnx.split(model, lambda path, _: path[-1] == "weights", ...)

            def total(zeros: nnx.State[Hashable, object]) -> jax.Array:
                network: Any = nnx.merge(noting, zeros, *others)
                return network.hidden(batch).astype(jnp.float32).sum()

            found = nnx.to_pure_dict(jax.grad(total)(zeros))["backbone"]
            if "layers" in found:
                return {"layers": found["layers"]}
            encoder, decoder = (found[side]["layers"] for side in ("encoder", "decoder"))
            return {"encoder": encoder, "decoder": decoder, "cross": decoder}

        @partial(jax.jit, static_argnums=0)
        def compute(
            value: Value | None, params: Tree, batch: Batch, weights: jax.Array
        ) -> tuple[jax.Array, jax.Array, Tree]:
            with mesh.tracing():
                model: Any = nnx.merge(graphdef, params)
                network = task.view(model)

                def total(hidden: jax.Array) -> jax.Array:
                    return sum_of(value, task, KnownHidden(network, hidden), batch, weights)

                hidden = network.hidden(batch)
                slopes = jnp.linalg.norm(jax.grad(total)(hidden).astype(jnp.float32), axis=-1)
                values = values_of(task, KnownHidden(network, hidden), batch, weights)
                return slopes, values, attended(params, batch)

        return compute


def stacks_of(backbone: Any) -> dict[str, tuple[Stack, str]]:
    """name -> (its layers, the module of a layer that attends; "": the only one)."""
    if hasattr(backbone, "layers"):
        return {"layers": (backbone.layers, "")}
    decoder = backbone.decoder.layers
    own = {"decoder": (decoder, "attention"), "cross": (decoder, "cross_attention")}
    return {"encoder": (backbone.encoder.layers, ""), **own}


def rolled(share: np.ndarray, layers: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """The shares of a row's outputs carried back to the tokens of its text, float64 [length]; see the module.

    Args:
      layers: weights of a row by the names of `stacks_of`, from the first layer to the last.
    """
    if "layers" not in layers:
        written, share = share, np.zeros(layers["cross"][0].shape[1])
        for own, cross in zip(reversed(layers["decoder"]), reversed(layers["cross"]), strict=True):
            share = share + written @ cross / 2
            written = (written @ own + written) / 4
    for layer in reversed(layers["layers" if "layers" in layers else "encoder"]):
        share = (share @ layer + share) / 2
    return share


def no_rollout(run: Run) -> str:
    """Why a run has no attention rollout; "": it has."""
    if run.members:
        return f"{run.path} is an ensemble, which has no attention of its own"
    if run.task.explained_by == "occlusion":
        return f"the task {run.config.task.name} has no attention of words"
    backbone = run.model.params.get("backbone", {})
    has_layers = "layers" in backbone or {"encoder", "decoder"} <= set(backbone)
    if has_layers and "word_embeddings" in backbone and run.task.context.pixels is None:
        return ""
    return "attention rollout is for networks of words alone"
