"""Which layers, heads and features of a network matter: what pruning removes.

influence  of a layer: 1 - mean over tokens of cos(input, output) (Men et al., 2024, "ShortGPT", equation 1); of a
           head or a feature of the MLP: the length of its activations over all tokens times that of its outgoing
           weights (as in Wanda, Sun et al., 2023, for structures)
loss       of a layer: what the task's loss becomes without it; the least harmful layer goes first, and the others
           are measured again without it
random     with the run's seed: what any other criterion has to beat
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.quantized import linears, plain_kernel
from instructrec_jax.backbones.layers import Kernel, Linear, Stack
from instructrec_jax.backbones.tensor_names import sites_of
from instructrec_jax.compression.calibration import Product, Statistics, Tap, inputs_of, observe
from instructrec_jax.data.batch import Batch
from instructrec_jax.data.loader import to_devices
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import LossInputs, Model, Task
from instructrec_jax.training.state import Tree

Criterion = Literal["influence", "loss", "random"]
CRITERIA = get_args(Criterion)


class Walk:
    """The layers of a stack one after the other, where each can be left out, and its influence is noted.

    Args:
      keep: float [layers]: 1, or 0 for a layer that is left out.
    """

    def __init__(self, stack: Stack, keep: jax.Array):
        self._stack, self._keep = stack, keep
        self.influence: list[jax.Array] = []  # Σ over tokens
        self.tokens = jnp.zeros(())

    def __call__(self, x: jax.Array, context: object, dropout: object = None) -> jax.Array:
        there = getattr(context, "segment_ids") > 0  # noqa: B009  # each family has its own type of context
        self.tokens = jnp.sum(there)
        for number in range(self._stack.num_layers):
            block, index = self._stack.locate(number)
            graphdef, state = nnx.split(getattr(self._stack, block))
            layer: Callable[..., jax.Array] = nnx.merge(graphdef, jax.tree.map(lambda a, i=index: a[i], state))
            new = layer(x, context, None)
            self.influence.append(jnp.sum(jnp.where(there, _angle(x, new), 0)))
            x = jnp.where(self._keep[number] > 0, new, x)
        return x


def _angle(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 - cos of vectors along the last axis, as half the squared distance of unit vectors, which cancels less."""

    def unit(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return jnp.sum(jnp.square(unit(a) - unit(b)), -1) / 2


def stack_of(network: Model) -> Stack:
    """The layers that pruning removes some of: those between a network's inputs and its hidden states."""
    layers = getattr(network.backbone, "layers", None)
    if not isinstance(layers, Stack):
        raise TypeError(f"{type(network.backbone).__name__} has no stack of layers of its own.")
    return layers


class LayerLosses:
    """The task's loss on some batches, without dropout, of the network with some of its layers; remembers each.

    Attributes:
      influence: float64 [layers], of the whole network.
      available: whether the task has a loss without buffers that belong to a training run.
    """

    def __init__(self, task: Task, model: SplitModel, mesh: DeviceMesh, batches: Sequence[Batch]):
        self.layers = stack_of(model.network).num_layers
        self.available = not task.refresh_every
        self._params, self._known = model.params, dict[tuple[int, ...], float]()
        self._batches = [to_devices(batch, mesh) for batch in batches]
        graphdef = model.graphdef

        @jax.jit
        def measure(params: Tree, batch: Batch, keep: jax.Array) -> tuple[jax.Array, ...]:
            with mesh.tracing():
                network = nnx.merge(graphdef, params)
                walk = Walk(stack_of(network), keep)
                network.backbone.__dict__["layers"] = walk  # no module: the network is not taken apart again
                if self.available:
                    total, weight = task.loss(task.view(network), batch, LossInputs())
                else:
                    total, weight = jnp.sum(network.hidden(batch)), jnp.ones(())
                return total, weight, jnp.stack(walk.influence[: self.layers]), walk.tokens

        self._measure = measure
        sums = self._sums(range(self.layers))
        self.influence = sums[2] / sums[3]

    def _sums(self, kept: Sequence[int]) -> list[np.ndarray]:
        keep = jnp.zeros(self.layers).at[np.array(kept, int)].set(1)
        found = [jax.device_get(self._measure(self._params, batch, keep)) for batch in self._batches]
        sums = [np.sum([np.asarray(each[i], np.float64) for each in found], axis=0) for i in range(4)]
        self._known[tuple(kept)] = float(sums[0] / sums[1])
        return sums

    def of(self, kept: Sequence[int]) -> float:
        """The loss with the layers in `kept` alone, in ascending order."""
        if tuple(kept) not in self._known:
            self._sums(kept)
        return self._known[tuple(kept)]


def layers_to_keep(losses: LayerLosses, count: int, criterion: Criterion, seed: int) -> tuple[int, ...]:
    """The numbers of the `count` layers to keep, ascending."""
    every = range(losses.layers)
    if criterion == "influence":
        return tuple(sorted(np.argsort(-losses.influence, kind="stable")[:count].tolist()))
    if criterion == "random":
        return tuple(sorted(np.random.default_rng(seed).permutation(losses.layers)[:count].tolist()))
    kept = tuple(every)
    while len(kept) > count:
        with heartbeat(f"measuring the loss without each of {len(kept)} layers"):
            without = [tuple(other for other in kept if other != layer) for layer in kept]
            kept = min(without, key=losses.of)
    return kept


def energies(model: SplitModel, mesh: DeviceMesh, batches: Sequence[Batch], *rule_paths: str) -> np.ndarray:
    """float64 [layers, inputs]: Σ x² over tokens · Σ w² over outputs, of the linear layer at a path in each layer.

    Args:
      rule_paths: such as "layers.{layer}.mlp_out"; each layer has one of them.
    """
    backbone = model.network.backbone
    every = linears(backbone)
    paths = {id(node): ".".join(map(str, path)) for path, node in nnx.iter_modules(backbone)}
    sites = {site.path: site for site in sites_of(backbone)}
    wanted = [f"{rule_path}.kernel" for rule_path in rule_paths]
    chosen = [n for n, each in enumerate(every) if sites[f"{paths[id(each)]}.kernel"].rule_path in wanted]
    seen = observe(model, mesh, batches, dict.fromkeys(chosen, squares)) if batches else {}
    rows: dict[int, np.ndarray] = {}
    for number in chosen:
        linear = every[number]
        lead, size = inputs_of(linear)
        kernel = np.asarray(plain_kernel(linear)[...], np.float64).reshape(*lead, size, -1)
        found = np.square(kernel).sum(-1) * (seen[number]["squares"] if number in seen else 1.0)
        layers = sites[f"{paths[id(linear)]}.kernel"].layers
        rows |= dict(zip(layers or (0,), found.reshape(-1, size), strict=True))
    return np.stack([rows[layer] for layer in sorted(rows)])


def squares(linear: Linear) -> Tap:
    """ "squares": Σ x² over tokens, [in]."""
    layers, size = inputs_of(linear)

    def measure(kernel: Product, other: Kernel | None, x: jax.Array) -> Statistics:
        return {"squares": jnp.square(x).reshape(-1, size).sum(0)}

    return Tap(measure, {"squares": np.zeros((*layers, size), np.float32)})


def parts_to_keep(energy: np.ndarray, parts: int, count: int, criterion: Criterion, seed: int) -> list[np.ndarray]:
    """For each layer the numbers of the `count` parts (heads, features) to keep, ascending.

    Args:
      energy: [layers, inputs], see `energies`; a part is inputs / parts neighbors.
    """
    rng = np.random.default_rng(seed)
    sums = energy.reshape(len(energy), parts, -1).sum(-1)
    order = [rng.permutation(parts) if criterion == "random" else np.argsort(-own, kind="stable") for own in sums]
    return [np.sort(each[:count]) for each in order]
