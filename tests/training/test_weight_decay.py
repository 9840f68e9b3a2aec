"""What decays is what HuggingFace's Trainer lets decay, for every parameter of every family and head."""

import re
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from instructrec_jax.backbones.folder import FAMILIES
from instructrec_jax.backbones.network_config import OWN_TYPES
from instructrec_jax.training.optimizer import decaying
from instructrec_jax.training.training_config import OptimizerConfig

# Names of transformers' modules -> those in its files, where they differ.
ATTENTION = {"attention.o_proj": "attention.output.dense"} | {
    f"attention.{short}_proj": f"attention.attention.{long}"
    for short, long in zip("qkv", ("query", "key", "value"), strict=True)
}
IN_FILES = {
    "vit": ATTENTION | {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "layers.": "encoder.layer."},
    "dinov2": ATTENTION,
    "dinov2_with_registers": ATTENTION,
}
THEIRS = {kind: family for kind, family in FAMILIES.items() if kind not in OWN_TYPES}
CASES = [(kind, head) for kind, family in THEIRS.items() for head in (None, *family.heads)]


def torch_model(model_type: str, head: str | None) -> Any:
    """A network of transformers without values; two layers, whatever the family calls their number."""
    family = FAMILIES[model_type]
    config = AutoConfig.for_model(model_type)
    for name in ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers", "encoder_layers"):
        if hasattr(config, name):
            setattr(config, name, 2)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    name = family.base_class
    if head is not None:
        chosen = family.heads[head]
        name = chosen.architecture or name.removesuffix("Model") + chosen.suffix
    with torch.device("meta"):
        return getattr(transformers, name)(config)


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_the_trainers_rule_on_every_family(model_type: str, head: str | None) -> None:
    family = FAMILIES[model_type]
    model = torch_model(model_type, head)
    decays_there = set(transformers.Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    rules = [(rule, "backbone/", ("", family.prefix)) for rule in family.mapping]
    rules += [(rule, "head/", ("",)) for rule in (family.heads[head].mapping if head else ())]
    seen = 0
    for name, _ in model.named_parameters():
        stored = name
        for module, file in IN_FILES.get(model_type, {}).items():
            stored = stored.replace(module, file)
        paths = {
            start + rule.path.replace("{layer}", "layers").replace(".", "/")
            for rule, start, prefixes in rules
            for written in (rule.name, *rule.copies)
            for prefix in prefixes
            if re.fullmatch(re.escape(prefix + written).replace(r"\{layer\}", r"\d+"), stored)
        }
        seen += bool(paths)
        for path in paths:
            tree: Any = {}
            *above, last = path.split("/")
            inner = tree
            for part in above:
                inner = inner.setdefault(part, {})
            inner[last] = 0.0
            (ours,) = _leaves(decaying(OptimizerConfig(), tree))
            assert ours == (name in decays_there), (name, path)
    # a network may have more than is read here (a pooler that transformers adds), but not much more
    assert seen > 0.8 * len(list(model.named_parameters()))


def _leaves(tree: Any) -> list[bool]:
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


def test_lora_matrices_do_not_decay() -> None:
    params = {"backbone": {"query": {"kernel": 0.0, "lora": {"a": 0.0, "b": 0.0}}}, "head": {"log_temperature": 0.0}}
    assert decaying(OptimizerConfig(), params) == {
        "backbone": {"query": {"kernel": True, "lora": {"a": False, "b": False}}},
        "head": {"log_temperature": False},
    }
    chosen = OptimizerConfig(decay_exclude=["bias", "norm", "scale$"])
    assert decaying(chosen, params)["backbone"]["query"]["lora"] == {"a": True, "b": True}
