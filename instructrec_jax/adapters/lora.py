"""LoRA (Hu et al., 2022): a trained low-rank update A B of a frozen kernel W: y = x W + scale · dropout(x) A B."""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.quantized import Quantized, dense_kernel, dense_tables, linears, plain_kernel
from instructrec_jax.adapters.token_rows import merge_token_rows
from instructrec_jax.backbones.family import Rule
from instructrec_jax.backbones.folder import family_of
from instructrec_jax.backbones.layers import Axes, DropoutKeys, Linear, dropout
from instructrec_jax.backbones.tensor_names import Network, rule_names, sites_of
from instructrec_jax.hf_types import PretrainedConfig

WEIGHTS = (".weight", ".kernel")  # ends of the names of kernels that are modules: of PyTorch, and of Flax
LORA_SITE = 1 << 16  # first dropout site of LoRA inside a layer; the layer itself uses small numbers

Values = jax.Array | jax.ShapeDtypeStruct


def check_lora(config: LoraConfig) -> None:
    """Raises ValueError for a setting that is out of range or has no effect."""
    if config.rank < 0:
        raise ValueError(f"lora.rank must be at least 0, but is {config.rank}.")
    if not 0 < config.alpha < math.inf:
        raise ValueError(f"lora.alpha must be above 0 and finite, but is {config.alpha}.")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"lora.dropout must lie in [0, 1), but is {config.dropout}.")
    if config.adapter is not None and config.rank:
        raise ValueError(
            "lora.adapter and lora.rank are both set: leave lora.rank at 0 to use the adapter's rank, or remove "
            "lora.adapter to start a new LoRA."
        )
    default = LoraConfig()
    given = [
        n for n in ("alpha", "targets", "dropout", "rslora", "token_rows") if getattr(config, n) != getattr(default, n)
    ]
    if given and config.adapter is not None:
        raise ValueError(f"lora.{given[0]} has no effect with lora.adapter, which sets it: remove lora.{given[0]}.")
    if given and not config.rank:
        raise ValueError(
            f"lora.{given[0]} has no effect without LoRA: set lora.rank, such as 8, or remove lora.{given[0]}."
        )


class Lora(nnx.Module):
    """The update of one `Linear`, or of a stack of them: a [in, rank] and b [rank, (parts,) out], fp32.

    Args:
        axes: the logical axes of the kernel [in, (parts,) out].
        site: the dropout site, unique among the linear layers of a layer.
    """

    def __init__(self, a: Values, b: Values, *, axes: Axes, scale: float, dropout: float, site: int):
        self.a = nnx.Param(a, axes=(axes[0], None))
        self.b = nnx.Param(b, axes=(None, *axes[1:]))
        self.scale = scale
        self.dropout = dropout
        self.site = site

    def __call__(self, x: jax.Array, keys: DropoutKeys | None) -> jax.Array:
        """x [..., in] → [..., (parts,) out] in x's dtype; no dropout if `keys` is None."""
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
    """Whether a parameter's path belongs to LoRA, such as 'backbone/layers/block0/attention/query/lora/a'."""
    return "/lora/" in path


# ---------------------------------------------------------------- choosing linear layers


@dataclass(frozen=True)
class Place:
    """A `Linear` of a backbone to which LoRA can be added.

    Attributes:
        names: HuggingFace's module names without the model's prefix, one per layer of a stack.
        old_names: those of transformers 4, where they were others; else the same.
        rule: the row of its kernel in the family's table of tensor names.
        number: the number of that row.
    """

    linear: Linear
    names: tuple[str, ...]
    old_names: tuple[str, ...]
    rule: Rule
    number: int

    @property
    def axes(self) -> Axes:
        kernel = self.linear.kernel
        return kernel.axes if isinstance(kernel, Quantized) else plain_kernel(self.linear).get_metadata()["axes"]

    @property
    def kernel_shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """((layers,) or (), (in, ..., out))."""
        shape = tuple(self.linear.kernel.shape)
        return shape[: -len(self.axes)], shape[-len(self.axes) :]


def places(backbone: nnx.Module, hf_config: PretrainedConfig, *, modules: bool = True) -> list[Place]:
    """The backbone's linear layers, in the order of the family's table.

    Args:
        modules: only those that are modules of transformers; False: also the ones within torch.nn.MultiheadAttention,
            whose name is that of its tensor without "_weight".
    """
    rules = {rule.path: (number, rule) for number, rule in enumerate(family_of(hf_config).mapping)}
    found = []
    for site in sites_of(backbone):
        path, rule_path = site.path.removesuffix(".codes"), site.rule_path.removesuffix(".codes")
        linear = functools.reduce(getattr, path.split(".")[:-1], backbone)
        if isinstance(linear, Linear) and path.endswith(".kernel"):
            number, rule = rules[rule_path]
            if modules and not rule.name.endswith(WEIGHTS):  # a tensor of torch.nn.MultiheadAttention
                continue
            old = [_module(rule_names(rule, layer)[0]) for layer in site.layers or (None,)]
            now = old if rule.module is None else [_at(rule.module, layer) for layer in site.layers or (None,)]
            found.append(Place(linear, tuple(now), tuple(old), rule, number))
    return sorted(found, key=lambda place: (place.number, place.names))


def _module(tensor: str) -> str:
    """The module of a kernel's tensor."""
    return re.sub(r"(\.kernel|[._]weight)$", "", tensor)


def _at(module: str, layer: int | None) -> str:
    return module if layer is None else module.replace("{layer}", str(layer))


def matches(target: str, name: str, prefix: str, setting: str = "lora.targets") -> bool:
    """Whether an entry of `LoraConfig.targets` matches the module `name`, by PEFT's rules.

    "all-linear" matches every module. A plain name matches modules with this name or with a name that ends with "." and
    it. An entry with one of \\ * + ? [ ] ( ) { } | ^ $ is a regular expression for the whole name, with or without the
    model's prefix.

    Raises ValueError for an invalid regular expression.
    """
    if target.lower() == "all-linear":
        return True
    if not set(target) & set("\\*+?[](){}|^$"):
        return f".{prefix}{name}".endswith(f".{target}")
    try:
        return any(re.fullmatch(target, full) for full in (name, prefix + name))
    except re.error as error:
        raise ValueError(f"{setting}: {target!r} is not a valid regular expression ({error}).") from error


def find_places(
    backbone: nnx.Module,
    hf_config: PretrainedConfig,
    targets: Sequence[str],
    setting: str = "lora.targets",
    *,
    modules: bool = True,
) -> list[Place]:
    """The linear layers that `targets` match, see `places`.

    Errors name the `setting`.

    Raises ValueError for a target without a match, and for targets that match only some layers of a stack.
    """
    all_places = places(backbone, hf_config, modules=modules)
    prefix = family_of(hf_config).prefix
    for target in targets or [""]:
        if not any(matches(target, name, prefix, setting) for place in all_places for name in place.names):
            known = dict.fromkeys(place.rule.module or _module(place.rule.name) for place in all_places)
            raise ValueError(
                f"{setting}: {target!r} matches no linear layer of this {hf_config.model_type} network; choose "
                f"all-linear or from {', '.join(known)}."
            )
    chosen = []
    for place in all_places:
        hits = [any(matches(target, name, prefix, setting) for target in targets) for name in place.names]
        if any(hits) and not all(hits):
            odd = place.names[hits.index(False)]
            raise ValueError(
                f"{setting} {list(targets)} match {place.names[hits.index(True)]} but not {odd}. These layers are "
                "stacked and treated together: name the module without the layer number."
            )
        if all(hits):
            chosen.append(place)
    return chosen


# ---------------------------------------------------------------- adding and merging


def add_lora(backbone: nnx.Module, hf_config: PretrainedConfig, config: LoraConfig, rngs: nnx.Rngs) -> list[str]:
    """Adds LoRA to linear layers of a (possibly abstract) network, in place, initialized as in PEFT.

    A is uniform in ± 1 / sqrt(in) and B is zero, so that the network's outputs do not change.

    Args:
        hf_config: the HuggingFace config of the backbone.
        rngs: its "params" stream initializes A.

    Returns HuggingFace's names of the modules, without the model's prefix.
    Raises ValueError for a target without a match, a setting out of range, and a layer that already has LoRA.
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
    """Raises ValueError for a rank above the rank of the largest kernel, which is the smaller of its two sizes."""

    def sizes(place: Place) -> tuple[int, int]:
        size, *out = place.kernel_shape[1]
        return size, math.prod(out)

    largest = max(chosen, key=lambda place: min(sizes(place)))
    size, out = sizes(largest)
    if rank > min(size, out):
        raise ValueError(
            f"lora.rank is {rank:,}, but the largest layer in lora.targets, {largest.names[0]}, is {size:,} x {out:,}: "
            f"set lora.rank to at most {min(size, out):,}."
        )


def _draw(key: jax.Array, shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    bound = 1 / math.sqrt(shape_a[-2])
    return jax.random.uniform(key, shape_a, jnp.float32, -bound, bound), jnp.zeros(shape_b, jnp.float32)


def set_lora(place: Place, a: Values, b: Values, *, scale: float, dropout: float) -> None:
    """Adds LoRA with the given matrices (see `Lora`) to a layer without LoRA."""
    if place.linear.lora is not None:
        raise ValueError(f"{place.names[0]} already has LoRA: merge it first.")
    site = LORA_SITE + place.number
    place.linear.lora = Lora(a, b, axes=place.axes, scale=scale, dropout=dropout, site=site)


def merge_lora(network: Network) -> Network:
    """Adds LoRA's updates to their kernels, in place and in fp32, and returns the network, now without LoRA.

    Quantized kernels, with or without LoRA, become plain kernels: the dequantized values plus the update. This is the
    network that was trained, as opposed to the update added to the original, unquantized weights. Quantized tables
    become plain tables, and trained rows of tokens go into theirs.
    """
    merge_token_rows(network)
    dense_tables(network)
    for linear in linears(network):
        kernel, lora = dense_kernel(linear), lora_of(linear)
        if lora is not None:
            kernel = nnx.Param(kernel[...] + lora.product(), axes=kernel.get_metadata()["axes"])
            linear.lora = None
        linear.kernel = kernel
    return network


def lora_of(linear: Linear) -> Lora | None:
    """The layer's LoRA, if it has one."""
    if linear.lora is not None and not isinstance(linear.lora, Lora):
        raise TypeError(f"the update of a linear layer must be a Lora, but is {type(linear.lora).__name__}.")
    return linear.lora
