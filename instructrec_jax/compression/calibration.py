"""What flows into the linear layers of a network on calibration texts.

A layer's kernel is replaced by a `Tapped` one, whose statistics leave the network as gradients of parameters that are
zero (see `backbones.noted`): so they come out of the scanned stack of any family in one compiled program.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.quantized import linears
from instructrec_jax.backbones.encoder import Encoder
from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.backbones.layers import Kernel, Linear, product
from instructrec_jax.backbones.noted import noted
from instructrec_jax.data.batch import Batch
from instructrec_jax.data.loader import to_devices
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import Model

GRAM_BYTES = 1 << 30  # of the statistics that are gathered in one pass; more layers take more passes

Statistics = dict[str, jax.Array]
State = nnx.State[Hashable, object]
Product = Kernel | nnx.Param[jax.Array]
Measure = Callable[[Product, Kernel | None, jax.Array], Statistics]


@dataclass(frozen=True)
class Tap:
    """What to find out about the inputs of a layer.

    Attributes:
      measure: (kernel, `other`, inputs fp32 [..., in]) -> the statistics.
      found: zeros of their shapes, with a stack's leading "layers" axis.
      other: another kernel in place of the layer's own, to compare them.
    """

    measure: Measure
    found: Mapping[str, np.ndarray]
    other: Kernel | None = None


class Tapped(nnx.Module):
    """A kernel with statistics of its inputs, see the module."""

    def __init__(self, kernel: Product, tap: Tap):
        self.kernel = kernel
        self.other = nnx.data(tap.other)
        self.measure = tap.measure
        self.found = nnx.Dict({name: nnx.Param(jnp.asarray(value)) for name, value in tap.found.items()})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.kernel.shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        found = self.measure(self.kernel, self.other, jax.lax.stop_gradient(x).astype(jnp.float32))
        x = noted(x, {name: slot[...] for name, slot in self.found.items()}, jax.lax.stop_gradient(found))
        return applied(self.kernel, x)


def applied(kernel: Product, x: jax.Array) -> jax.Array:
    """x [..., in] times a kernel."""
    return product(x, kernel[...].astype(x.dtype)) if isinstance(kernel, nnx.Param) else kernel(x)


def gram(linear: Linear) -> Tap:
    """ "gram": Σ x xᵀ over tokens, [in, in], the Hessian of GPTQ."""
    layers, size = inputs_of(linear)

    def measure(kernel: Product, other: Kernel | None, x: jax.Array) -> Statistics:
        flat = x.reshape(-1, size)
        return {"gram": flat.T @ flat}

    return Tap(measure, {"gram": np.zeros((*layers, size, size), np.float32)})


def largest(linear: Linear) -> Tap:
    """ "largest": max |x| over tokens, [in], the range of SmoothQuant."""
    layers, size = inputs_of(linear)

    def measure(kernel: Product, other: Kernel | None, x: jax.Array) -> Statistics:
        return {"largest": jnp.abs(x).reshape(-1, size).max(0)}

    return Tap(measure, {"largest": np.zeros((*layers, size), np.float32)})


def compared(linear: Linear, other: Kernel) -> Tap:
    """ "error" and "power": Σ (z - y)² and Σ y² of the layer's outputs y, and z with the other kernel."""
    layers, _ = inputs_of(linear)

    def measure(kernel: Product, other: Kernel | None, x: jax.Array) -> Statistics:
        assert other is not None
        y = applied(kernel, x)
        return {"error": jnp.square(other(x) - y).sum(), "power": jnp.square(y).sum()}

    return Tap(measure, {name: np.zeros(layers, np.float32) for name in ("error", "power")}, other)


def observe(
    model: SplitModel, mesh: DeviceMesh, batches: Sequence[Batch], taps: Mapping[int, Callable[[Linear], Tap]]
) -> dict[int, dict[str, np.ndarray]]:
    """Statistics of the inputs of linear layers: sums over all batches; "largest" is the largest.

    Args:
      taps: place of a layer among `linears(backbone)` -> its tap.

    Returns for each place a dictionary of arrays as in `Tap.found`.
    """
    results: dict[int, dict[str, np.ndarray]] = {}
    for part in _passes(model, taps):
        network = model.network
        every = linears(network.backbone)
        for place, tap in part.items():
            every[place].kernel = Tapped(every[place].kernel, tap)
        paths = {id(node): path for path, node in nnx.iter_modules(network)}
        graphdef, slots, *others = nnx.split(network, lambda path, _: "found" in path, ...)
        rest = others[0]

        @jax.jit
        def found(slots: State, rest: State, batch: Batch, graphdef: nnx.GraphDef[Model] = graphdef) -> State:
            with mesh.tracing():
                return jax.grad(lambda slots: _total(nnx.merge(graphdef, slots, rest), batch))(slots)

        sums: dict[tuple[object, ...], np.ndarray] = {}
        for batch in batches:
            for path, value in nnx.to_flat_state(found(slots, rest, to_devices(batch, mesh))):
                new = np.asarray(value[...])
                join = np.maximum if path[-1] == "largest" else np.add
                sums[path] = join(sums[path], new) if path in sums else new
        for place in part:
            own = (*paths[id(every[place])], "kernel", "found")
            results[place] = {str(path[-1]): value for path, value in sums.items() if path[:-1] == own}
    return results


def _total(network: Model, batch: Batch) -> jax.Array:
    """A number that depends on all linear layers of the backbone, or of the part that the batch is for."""
    if isinstance(network.backbone, ImageText) and batch.images is not None:
        return network.backbone.embed_images(batch.images.flat).astype(jnp.float32).sum()
    hidden = network.hidden(batch).astype(jnp.float32)
    if not isinstance(network.backbone, Encoder) or network.backbone.pooler is None:
        return hidden.sum()
    first = hidden * (batch.texts.positions == 0)[..., None]  # zeros change no statistic
    return hidden.sum() + network.backbone.pool(first).sum()


def _passes(model: SplitModel, taps: Mapping[int, Callable[[Linear], Tap]]) -> Iterator[dict[int, Tap]]:
    """The taps, in order, in parts whose statistics have at most `GRAM_BYTES`."""
    part: dict[int, Tap] = {}
    every, used = linears(model.network.backbone), 0
    for place, tap_of in taps.items():
        tap = tap_of(every[place])
        size = sum(zeros.nbytes for zeros in tap.found.values())
        if part and used + size > GRAM_BYTES:
            yield part
            part, used = {}, 0
        part, used = {**part, place: tap}, used + size
    if part:
        yield part


def inputs_of(linear: Linear) -> tuple[tuple[int, ...], int]:
    """((layers,) or (), number of inputs) of a layer."""
    shape = tuple(linear.kernel.shape)
    kernel = linear.kernel
    axes = kernel.get_metadata()["axes"] if isinstance(kernel, nnx.Param) else getattr(kernel, "axes", shape)
    lead = shape[: len(shape) - len(axes)]
    return lead, shape[len(lead)]
