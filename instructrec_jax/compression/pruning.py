"""Smaller dense networks: fewer layers, attention heads, features of the MLP, and tokens.

A parameter is known by the path of its rule and its layer, so that the same steps serve every family, however its
layers are stacked.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flax import nnx

from instructrec_jax.backbones.family import PAIR, WORDLESS, Family
from instructrec_jax.backbones.folder import family_of
from instructrec_jax.backbones.tensor_names import sites_of
from instructrec_jax.compression.importance import CRITERIA, Criterion
from instructrec_jax.compression.vocabulary import NAMES_OF_IDS, renumbered
from instructrec_jax.hf_types import PretrainedConfig

WIDTH_FIELDS = {"gpt2": "n_inner", "distilbert": "hidden_dim", "whisper": "encoder_ffn_dim"}  # of config.json
Values = dict[tuple[str, int | None], np.ndarray]
NO_LAYERS = ("modernbert",)  # its first layer has another form than the others
NO_WIDTH = {  # model_type -> why
    "modernbert": "its MLP computes two halves in one layer",
    "dinov2": "transformers takes the width to be a whole multiple of the hidden size (mlp_ratio)",
    "siglip_vision_model": "its pooling has an MLP of the same width",
}
WIDTH = "mlp_in", "mlp_gate", "mlp_out", "inner", "outer"
OUTGOING = "mlp_out", "outer"
LAYERS = "layers."  # what is pruned; of a network that reads images between words, its decoder of words


@dataclass(frozen=True)
class Pruning:
    """What is left of a network; None: all.

    Attributes:
      layers, heads, width: number of layers; of attention heads and of features of the MLP in each layer.
      vocabulary: whether only the tokens in use are left, see `compression.vocabulary`.
      criterion: what decides, see `compression.importance`.
    """

    layers: int | None = None
    heads: int | None = None
    width: int | None = None
    vocabulary: bool = False
    criterion: Criterion = "influence"

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"unknown criterion {self.criterion!r}; choose from {', '.join(CRITERIA)}.")
        if self.criterion == "loss" and (self.heads, self.width) != (None, None):
            raise ValueError("--criterion loss is for --layers alone: choose influence or random for heads and width.")

    @property
    def on(self) -> bool:
        return (self.layers, self.heads, self.width, self.vocabulary) != (None, None, None, False)

    def check(self, config: PretrainedConfig) -> None:
        """Raises ValueError where the network of this config cannot be pruned so; names the option."""
        family = family_of(config)
        if self.vocabulary and (why := _no_vocabulary(family)) is not None:
            raise ValueError(f"--vocabulary is not implemented for {config.model_type}: {why}.")
        structures = (self.layers, self.heads, self.width) != (None, None, None)
        if family.kind == PAIR and structures:
            raise ValueError(
                f"--layers, --heads and --width prune the layers of one network, but {config.model_type} is two side "
                "by side: compress to codes, or use --sparsity."
            )
        if family.kind == "encoder_decoder" and structures:
            raise ValueError(
                f"layers, heads and width of an encoder–decoder ({config.model_type}) cannot be pruned: use "
                "--vocabulary, or compress to codes."
            )
        if self.layers is not None and config.model_type in NO_LAYERS:
            raise ValueError(f"--layers: the first layer of {config.model_type} has a form of its own: use --width.")
        if self.width is not None and config.model_type in NO_WIDTH:
            raise ValueError(f"--width is not implemented for {config.model_type}: {NO_WIDTH[config.model_type]}.")
        if self.heads is not None and (family.kind != "decoder" or config.model_type == "gpt2"):
            raise ValueError(
                f"--heads: in {config.model_type}, transformers takes the size of a head to be hidden size / heads, so "
                "fewer heads of the same size cannot be opened: use --layers or --width."
            )
        if not structures:
            return
        config = text_part(config)
        sizes = {"--layers": (self.layers, config.num_hidden_layers), "--heads": (self.heads, _heads(config))}
        for name, (wanted, there) in (sizes | {"--width": (self.width, mlp_width(config))}).items():
            if wanted is not None and not 0 < wanted < there:
                raise ValueError(f"{name} is {wanted}, but should be from 1 to {there - 1}: the network has {there}.")
        if self.heads is not None and self.heads % (group := _heads(config) // config.num_key_value_heads):
            raise ValueError(
                f"--heads is {self.heads}, but {group} heads share a key and stay together: choose a multiple of it."
            )


def _no_vocabulary(family: Family) -> str | None:
    """Why the tokens of a family's networks cannot be cut; None where they can."""
    if family.kind in WORDLESS:
        return "it reads no words"
    if family.draws:
        return "its encoder and its decoder have a vocabulary each"
    if family.sounds:
        return "generation_config.json names the tokens of languages and tasks by number"
    if family.kind == PAIR:
        return "it cuts the tokens of one network, and this is a pair"
    return None


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config, itself or `text_config`, that has the sizes of what is pruned; no copy."""
    return getattr(config, "text_config", None) or config


def _heads(config: PretrainedConfig) -> int:
    return int(config.num_attention_heads)


def mlp_width(config: PretrainedConfig) -> int:
    """Features of the MLP, of the config of `text_part`."""
    if config.model_type == "gpt2":
        return int(config.n_inner or 4 * config.n_embd)
    return int(getattr(config, WIDTH_FIELDS.get(config.model_type, "intermediate_size"), None) or 0)


def values_of(module: nnx.Module) -> Values:
    """(path of the rule, number of the layer or None) -> parameter."""
    arrays = {".".join(map(str, keys)): np.asarray(v[...]) for keys, v in nnx.to_flat_state(nnx.state(module))}
    found: Values = {}
    for site in sites_of(module):
        for i, layer in enumerate(site.layers or ()):
            found[site.rule_path, layer] = arrays[site.path][i]
        if site.layers is None:
            found[site.rule_path, None] = arrays[site.path]
    return found


def by_path(module: nnx.Module, values: Values, prefix: str) -> dict[str, np.ndarray]:
    """The parameters as an (abstract) module stores them, by its paths after `prefix`.

    Raises ValueError where one is missing or of another shape.
    """
    found = {}
    for site in sites_of(module):
        keys = [(site.rule_path, layer) for layer in site.layers or (None,)]
        own = [values.get(key) for key in keys]
        parts = [each for each in own if each is not None]
        whole = np.stack(parts) if len(parts) == len(own) and site.layers is not None else parts[0] if parts else None
        if whole is None or whole.shape != site.shape:
            raise ValueError(
                f"this network cannot be pruned so: {site.path} of the smaller one has the shape {site.shape}, but "
                f"{'nothing' if whole is None else whole.shape} is left for it."
            )
        found[f"{prefix}{site.path.replace('.', '/')}"] = whole
    return found


def keep_layers(values: Values, kept: Sequence[int]) -> Values:
    others = {key: value for key, value in values.items() if key[1] is None or not key[0].startswith(LAYERS)}
    new = {old: number for number, old in enumerate(kept)}
    own = {key: value for key, value in values.items() if key not in others}
    return others | {(path, new[layer]): value for (path, layer), value in own.items() if layer in new}


def keep_width(values: Values, kept: Sequence[np.ndarray]) -> Values:
    """Of each layer's MLP, the features in `kept`."""

    def cut(path: str, layer: int, value: np.ndarray) -> np.ndarray:
        *_, module, kind = path.split(".")
        if module not in WIDTH or (module in OUTGOING and kind != "kernel"):
            return value
        return np.take(value, kept[layer], axis=0 if module in OUTGOING else -1)

    return _each(values, cut)


def keep_heads(values: Values, kept: Sequence[np.ndarray], head: int, group: int) -> Values:
    """Of each layer, the groups of heads with a common key that are in `kept`.

    Args:
      head: features of a head.
      group: heads that share a key.
    """

    def cut(path: str, layer: int, value: np.ndarray) -> np.ndarray:
        *_, room, module, kind = ("", *path.split("."))
        if room != "attention" or module not in ("query", "key", "value", "output"):
            return value
        size = head * (group if module in ("query", "output") else 1)
        features = (kept[layer][:, None] * size + np.arange(size)).ravel()
        if module == "output":
            return np.take(value, features, axis=0) if kind == "kernel" else value
        return np.take(value, features, axis=-1)

    return _each(values, cut)


def _each(values: Values, cut: Callable[[str, int, np.ndarray], np.ndarray]) -> Values:
    return {
        (path, layer): value if layer is None or not path.startswith(LAYERS) else cut(path, layer, value)
        for (path, layer), value in values.items()
    }


def keep_tokens(module: nnx.Module, values: Values, order: np.ndarray, size: int) -> Values:
    """The tables over the vocabulary with the rows of the tokens in `order`."""
    axes = {site.rule_path: site.axes for site in sites_of(module)}

    def cut(path: str, value: np.ndarray) -> np.ndarray:
        for axis, name in enumerate(axes[path]):
            if name == "vocab" and value.shape[axis] == size:
                value = np.take(value, order, axis=axis)
        return value

    return {(path, layer): cut(path, value) for (path, layer), value in values.items()}


def pruned_config(
    config: PretrainedConfig, how: Pruning, layers: Sequence[int] | None, order: np.ndarray | None
) -> PretrainedConfig:
    """The HuggingFace config of the smaller network.

    Args:
      layers: numbers of the layers that are left.
      order: old numbers of the tokens that are left.
    """
    whole = copy.deepcopy(config)
    config = text_part(whole)
    if layers is not None:
        if (types := getattr(config, "layer_types", None)) is not None:
            config.layer_types = [types[layer] for layer in layers]
        config.num_hidden_layers = len(layers)
        if config.model_type == "whisper":
            config.encoder_layers = len(layers)
    if how.width is not None:
        setattr(config, WIDTH_FIELDS.get(config.model_type, "intermediate_size"), how.width)
    if how.heads is not None:
        group = _heads(config) // config.num_key_value_heads
        config.head_dim = head_size(config)
        config.num_attention_heads, config.num_key_value_heads = how.heads, how.heads // group
    if order is not None:
        new = {int(old): number for number, old in enumerate(order)}
        for part in {id(each): each for each in (whole, config)}.values():
            for name, value in vars(part).copy().items():  # vars: some names are other names of the same field
                if name in NAMES_OF_IDS and value is not None:
                    setattr(part, name, renumbered(value, new, name))
            if part is config or "vocab_size" in vars(part):
                part.vocab_size = len(order)
    return whole


def head_size(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def report_of(kept: Mapping[Criterion, Sequence[int]], losses: Mapping[Criterion, float]) -> list[dict[str, object]]:
    """Rows of the table of criteria."""
    return [{"criterion": name, "layers": list(own), "loss": losses.get(name)} for name, own in kept.items()]
