"""adapter_config.json of an adapter in PEFT's format: what of it is supported, and which modules it means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from instructrec_jax.adapters.module_patterns import matches
from instructrec_jax.backbones.json_fields import Fields, read_fields

Number = TypeVar("Number", int, float)

CONFIG = "adapter_config.json"
MOST_RANK = 1 << 16

# Fields of adapter_config.json that are supported, and fields that do not affect the network. PEFT has many more, for
# variants of LoRA; an adapter that sets one of those is refused.
FOLLOWED = {
    "alpha_pattern",
    "exclude_modules",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "trainable_token_indices",
    "use_rslora",
}
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
# Other initializations also change the base's weights, so their adapters fit only the changed weights.
INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class Adapter:
    """The supported fields of adapter_config.json.

    Attributes:
        targets, excluded: the modules with LoRA: (ends of) their names, or a regular expression.
        saved: ends of the names of modules that are saved whole.
        ranks, alphas: by pattern of the modules' names, where they differ from `rank` and `alpha`.
        chooses_layers: whether only some layers have LoRA (layers_to_transform).
        tokens: whose rows of word embeddings are trained, by module; a list: of the embeddings.
    """

    rank: int
    alpha: float
    dropout: float
    rslora: bool
    targets: str | list[str] | None
    excluded: str | list[str] | None
    saved: list[str]
    ranks: dict[str, int]
    alphas: dict[str, float]
    chooses_layers: bool
    tokens: list[int] | dict[str, list[int]] | None


def read_config(folder: Path) -> Adapter:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no {CONFIG}: it is not a PEFT adapter.")
    fields = read_fields(folder / CONFIG)
    kind = fields.text("peft_type")
    if kind != "LORA":
        raise ValueError(f"{folder / CONFIG}: peft_type is {kind!r}, but only LORA is supported.")
    adapter = _read_fields(fields)
    neutral: tuple[object, ...] = (None, False, "none", {}, [])
    odd = {k: v for k, v in fields.values.items() if k not in FOLLOWED | HARMLESS and v not in neutral}
    if fields.values.get("init_lora_weights", True) not in INITIALIZATIONS:
        odd["init_lora_weights"] = fields.values["init_lora_weights"]
    if odd:
        named = ", ".join(f"{key}={value!r}" for key, value in odd.items())
        raise ValueError(
            f"{folder / CONFIG} has {named}, which is not supported: only plain LoRA on linear layers is, and loading "
            "this adapter would give wrong numbers."
        )
    return adapter


def _read_fields(fields: Fields) -> Adapter:
    """Raises ValueError for a field of a wrong type or range, and for a pattern not matchable in bounded time."""
    rank, alpha = fields.integer("r", 1, MOST_RANK), fields.number("lora_alpha", 0.0)
    if rank is None:
        fields.refuse("r", "an integer")
    dropout = fields.number("lora_dropout", 0.0, 1.0) or 0.0
    if dropout == 1.0:
        fields.refuse("lora_dropout", "a number from 0 to below 1")
    targets, excluded = (
        fields.text(name) if isinstance(fields.values.get(name), str) else fields.texts(name)
        for name in ("target_modules", "exclude_modules")
    )
    ranks, alphas = (fields.object(f"{name}_pattern") or Fields(fields.where, {}) for name in ("rank", "alpha"))
    adapter = Adapter(
        rank=rank,
        alpha=8.0 if alpha is None else alpha,
        dropout=dropout,
        rslora=fields.flag("use_rslora"),
        targets=targets,
        excluded=excluded,
        saved=fields.texts("modules_to_save") or [],
        ranks={key: _present(ranks, key, ranks.integer(key, 1, MOST_RANK)) for key in ranks.values},
        alphas={key: _present(alphas, key, alphas.number(key, 0.0)) for key in alphas.values},
        chooses_layers=fields.values.get("layers_to_transform") is not None,
        tokens=_tokens(fields),
    )
    expressions = {"target_modules": targets, "exclude_modules": excluded}
    patterns = [(name, value) for name, value in expressions.items() if isinstance(value, str)]
    patterns += [("rank_pattern", key) for key in adapter.ranks] + [("alpha_pattern", key) for key in adapter.alphas]
    for name, pattern in patterns:
        try:
            matches(pattern, "")
        except ValueError as error:
            raise ValueError(f"{fields.where}: {name}: {error}") from None
    return adapter


def _present(fields: Fields, name: str, value: Number | None) -> Number:
    if value is None:
        fields.refuse(name, "a number")
    return value


def _tokens(fields: Fields) -> list[int] | dict[str, list[int]] | None:
    given: Any = fields.values.get("trainable_token_indices")
    if not given:
        return None
    for each in given.values() if isinstance(given, dict) else [given]:
        if not (isinstance(each, list) and each and all(type(token) is int and token >= 0 for token in each)):
            fields.refuse("trainable_token_indices", "tokens, or a list of them for each module")
        if len(set(each)) < len(each):
            fields.refuse("trainable_token_indices", "distinct tokens")
    return cast(list[int] | dict[str, list[int]], given)


def is_target(adapter: Adapter, name: str) -> bool:
    """Whether the config's target_modules match this module (PEFT's rule: a string is a regular expression)."""

    def hit(modules: str | Sequence[str] | None) -> bool:
        if isinstance(modules, str):
            return modules.lower() == "all-linear" or matches(modules, name)
        return any(f".{name}".endswith(f".{module}") for module in modules or ())

    covered = any(f".{module}." in f".{name}." for module in adapter.saved)
    return hit(adapter.targets) and not hit(adapter.excluded) and not covered


def first(patterns: Mapping[str, Number], name: str, default: Number) -> Number:
    """A module's rank or alpha: that of the first pattern that matches the end of its name, else the default."""
    for key, value in patterns.items():
        if matches(rf"(?:.*\.)?(?:{key})$", name, whole=False):
            return value
    return default
