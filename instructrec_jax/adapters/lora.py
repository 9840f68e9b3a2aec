"""LoRA (Hu et al., 2022): beside a frozen kernel W, a trained update of low rank: y = x W + scale · dropout(x) A B."""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from instructrec_jax.adapters.quantized import Quantized, dense_kernel, linears
from instructrec_jax.backbones.family import Rule
from instructrec_jax.backbones.folder import find_family
from instructrec_jax.backbones.layers import Axes, DropoutKeys, Linear, dropout
from instructrec_jax.backbones.tensor_names import rule_names, sites_of

LORA_SITE = 1 << 16  # dropout sites inside a layer; the layer's own are small numbers


@dataclass
class LoraConfig:
    """Low-rank updates of the backbone's linear layers (LoRA), trained in place of the backbone itself."""

    rank: int = 0  # rank of each update; 0: no LoRA, the backbone itself is trained
    alpha: float = 16.0  # updates are scaled by alpha / rank
    targets: list[str] = field(  # linear layers: all-linear, HuggingFace's names or their ends, or regular expressions
        default_factory=lambda: ["all-linear"]
    )
    dropout: float = 0.0  # of the input of an update
    rslora: bool = False  # scale by alpha / sqrt(rank) instead (Kalajdzievski, 2023)
    adapter: str | None = None  # folder of a PEFT adapter to start from, which brings its own rank, alpha and targets

    @property
    def on(self) -> bool:
        return self.rank > 0 or self.adapter is not None

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def check_lora(config: LoraConfig) -> None:
    """Refuses settings out of their range, and those that nothing would follow.

    Raises ValueError that names the setting.
    """
    if config.rank < 0:
        raise ValueError(f"lora.rank must be at least 0, but is {config.rank}.")
    if not 0 < config.alpha < math.inf:
        raise ValueError(f"lora.alpha must be above 0 and finite, but is {config.alpha}.")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"lora.dropout must lie in [0, 1), but is {config.dropout}.")
    if config.adapter is not None and config.rank:
        raise ValueError("lora.adapter brings its own rank: leave lora.rank at 0, or start a new LoRA without it.")
    default = LoraConfig()
    given = [n for n in ("alpha", "targets", "dropout", "rslora") if getattr(config, n) != getattr(default, n)]
    if given and config.adapter is not None:
        raise ValueError(f"lora.{given[0]} has no effect beside lora.adapter, which brings its own: leave it out.")
    if given and not config.rank:
        raise ValueError(f"lora.{given[0]} has no effect without LoRA: set lora.rank (8, say), or leave it out.")


class Lora(nnx.Module):
    """The update of one `Linear`, or of a stack of them: a [in, rank] and b [rank, (parts,) out], fp32.

    Args:
        axes: the logical axes of the kernel [in, (parts,) out].
        site: the dropout site, another one for each linear layer of a layer.
    """

    def __init__(self, a: Any, b: Any, *, axes: Axes, scale: float, dropout: float, site: int):
        self.a = nnx.Param(a, axes=(axes[0], None))
        self.b = nnx.Param(b, axes=(None, *axes[1:]))
        self.scale = scale
        self.dropout = dropout
        self.site = site

    def __call__(self, x: jax.Array, keys: DropoutKeys | None) -> jax.Array:
        """x [..., in] → [..., (parts,) out] in x's dtype; no dropout where `keys` is None."""
        x = dropout(x, self.dropout, None if keys is None else keys.fold(self.site))
        low = jnp.tensordot(x, self.a[...].astype(x.dtype), axes=1) * self.scale
        return jnp.tensordot(low, self.b[...].astype(x.dtype), axes=1)

    def product(self) -> jax.Array:
        """scale · a b in fp32, in the kernel's shape."""

        def one(a: jax.Array, b: jax.Array) -> jax.Array:
            return self.scale * jnp.tensordot(a, b, axes=1, precision="highest")

        stacked = self.a.ndim == 3
        return (jax.vmap(one) if stacked else one)(self.a[...], self.b[...])


def is_lora(path: str) -> bool:
    """Whether a parameter's path ('backbone/layers/block0/attention/query/lora/a') is one of LoRA's."""
    return "/lora/" in path


# ---------------------------------------------------------------- which linear layers


@dataclass(frozen=True)
class Place:
    """A `Linear` of a backbone that LoRA can be added to.

    Attributes:
        names: HuggingFace's module names without the model's prefix, one per layer of a stack.
        rule: the line of the family's table that its kernel follows.
        number: of that line.
    """

    linear: Linear
    names: tuple[str, ...]
    rule: Rule
    number: int

    @property
    def axes(self) -> Axes:
        kernel: Any = self.linear.kernel
        return kernel.axes if isinstance(kernel, Quantized) else kernel.get_metadata()["axes"]

    @property
    def kernel_shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """((layers,) or (), (in, ..., out))."""
        shape = tuple(self.linear.kernel.shape)
        return shape[: -len(self.axes)], shape[-len(self.axes) :]


def places(backbone: nnx.Module, hf_config: Any) -> list[Place]:
    """The backbone's linear layers, in the order of the family's table."""
    rules = {rule.path: (number, rule) for number, rule in enumerate(find_family(hf_config.model_type).mapping)}
    found = []
    for site in sites_of(backbone):
        path, rule_path = site.path.removesuffix(".codes"), site.rule_path.removesuffix(".codes")
        linear: Any = functools.reduce(getattr, path.split(".")[:-1], backbone)
        if isinstance(linear, Linear) and path.endswith(".kernel"):
            number, rule = rules[rule_path]
            names = [rule_names(rule, layer)[0].removesuffix(".weight") for layer in site.layers or (None,)]
            found.append(Place(linear, tuple(names), rule, number))
    return sorted(found, key=lambda place: (place.number, place.names))


def matches(target: str, name: str, prefix: str) -> bool:
    """Whether an entry of `LoraConfig.targets` means the module `name`, as PEFT has it.

    "all-linear" means every one. A name means the modules that are called so, or whose name ends with "." and it. What
    has one of \\ * + ? [ ] ( ) { } | ^ $ in it is a regular expression for the whole name, with or without the
    model's prefix.
    """
    if target.lower() == "all-linear":
        return True
    if not set(target) & set("\\*+?[](){}|^$"):
        return f".{prefix}{name}".endswith(f".{target}")
    try:
        return any(re.fullmatch(target, full) for full in (name, prefix + name))
    except re.error as error:
        raise ValueError(f"lora.targets: {target!r} is no regular expression ({error}).") from error


def find_places(backbone: nnx.Module, hf_config: Any, targets: Sequence[str]) -> list[Place]:
    """The linear layers that `targets` mean.

    Raises ValueError for a target without a match, and where some layers of a stack are meant and others are not.
    """
    all_places, prefix = places(backbone, hf_config), find_family(hf_config.model_type).prefix
    for target in targets or [""]:
        if not any(matches(target, name, prefix) for place in all_places for name in place.names):
            known = dict.fromkeys(place.rule.name.removesuffix(".weight") for place in all_places)
            raise ValueError(
                f"lora.targets: {target!r} matches no linear layer of this {hf_config.model_type} network. "
                f"There are all-linear and: {', '.join(known)}."
            )
    chosen = []
    for place in all_places:
        hits = [any(matches(target, name, prefix) for target in targets) for name in place.names]
        if any(hits) and not all(hits):
            odd = place.names[hits.index(False)]
            raise ValueError(
                f"lora.targets {list(targets)} mean {place.names[hits.index(True)]} but not {odd}. Layers that are "
                "stored as one get LoRA together: name the module without the layer's number."
            )
        if all(hits):
            chosen.append(place)
    return chosen


# ---------------------------------------------------------------- adding and merging


def add_lora(backbone: nnx.Module, hf_config: Any, config: LoraConfig, rngs: nnx.Rngs) -> list[str]:
    """Gives linear layers of a finished (or abstract) network their updates, in place, initialised as PEFT does.

    A is uniform in ± 1 / sqrt(in) and B zero, so that the network computes what it did before.

    Args:
        hf_config: the HuggingFace config of the backbone.
        rngs: its "params" stream draws A.

    Returns HuggingFace's names of the modules, without the model's prefix.
    Raises ValueError for a target that matches nothing, settings out of range, and a layer that has LoRA already.
    """
    if config.rank < 1:
        raise ValueError(f"lora.rank must be at least 1 to add LoRA, but is {config.rank}.")
    check_lora(config)
    chosen = find_places(backbone, hf_config, config.targets)
    _check_rank(config.rank, chosen)
    for place in chosen:
        layers, (size, *out) = place.kernel_shape
        draw = functools.partial(_draw, shape_a=(*layers, size, config.rank), shape_b=(*layers, config.rank, *out))
        abstract = isinstance(jax.tree.leaves(nnx.state(place.linear))[0], jax.ShapeDtypeStruct)
        a, b = jax.eval_shape(draw, rngs.params()) if abstract else draw(rngs.params())
        set_lora(place, a, b, scale=config.scale, dropout=config.dropout)
    return [name for place in chosen for name in place.names]


def _check_rank(rank: int, chosen: Sequence[Place]) -> None:
    """A product a b has at most the rank of the kernel beside it: the smaller of its two sizes."""

    def sizes(place: Place) -> tuple[int, int]:
        size, *out = place.kernel_shape[1]
        return size, math.prod(out)

    largest = max(chosen, key=lambda place: min(sizes(place)))
    size, out = sizes(largest)
    if rank > min(size, out):
        raise ValueError(
            f"lora.rank is {rank:,}, but the largest of the layers in lora.targets, {largest.names[0]}, is {size:,} x "
            f"{out:,}: the rank can be at most {min(size, out):,}."
        )


def _draw(key: jax.Array, shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    bound = 1 / math.sqrt(shape_a[-2])
    return jax.random.uniform(key, shape_a, jnp.float32, -bound, bound), jnp.zeros(shape_b, jnp.float32)


def set_lora(place: Place, a: Any, b: Any, *, scale: float, dropout: float) -> None:
    if place.linear.lora is not None:
        raise ValueError(f"{place.names[0]} has LoRA already: merge it first.")
    site = LORA_SITE + place.number
    place.linear.lora = Lora(a, b, axes=place.axes, scale=scale, dropout=dropout, site=site)


def merge_lora(network: nnx.Module) -> nnx.Module:
    """Adds the updates to their kernels, in place and in fp32, and returns the network, now without LoRA.

    Quantised kernels, updated or not, become plain ones: what their codes stand for, plus the update. That is the
    network that was trained; it isn't the update of the weights from before they were quantised.
    """
    for linear in linears(network):
        linear.kernel = dense_kernel(linear)
        if linear.lora is not None:
            axes = linear.kernel.get_metadata()["axes"]
            linear.kernel = nnx.Param(linear.kernel[...] + linear.lora.product(), axes=axes)
            linear.lora = None
    return network
