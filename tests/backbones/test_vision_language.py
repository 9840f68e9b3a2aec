"""Decoders that read images: layouts of tensor names, and configs that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file
from tiny_networks import READERS

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones.folder import FAMILIES, family_of
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.reading import build_backbone, load_backbone, load_head
from instructrec_jax.backbones.tensor_names import TensorFiles, rule_names, sites_of
from instructrec_jax.backbones.vision_language import TEXTS, TOWERS
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.training.parameters import frozen_parameters, parameter_paths

SUFFIX = "ForConditionalGeneration"
LAYOUTS: dict[str, Callable[[str], str]] = {
    "the hub's": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
    "of modules": lambda name: FAMILIES["llava"].name_here(name),
    "of modules with the tower's own": lambda name: (
        FAMILIES["llava"].name_here(name).replace("vision_tower.", "vision_tower.vision_model.")
    ),
    "of transformers 5": lambda name: name,
}


def values(module: nnx.Module) -> dict[str, np.ndarray]:
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(module))}


@pytest.mark.parametrize("kind", ["llava", "paligemma", "gemma3"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_names_is_read_and_what_is_written_opens_in_transformers(
    make_checkpoint: Callable[..., Path], tmp_path: Path, layout: str, kind: str
) -> None:
    folder = make_checkpoint(kind, SUFFIX, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    renamed = {LAYOUTS[layout](name): tensor for name, tensor in tensors.items()}
    assert (renamed.keys() == tensors.keys()) == (layout == "of transformers 5")
    other = tmp_path / "other"
    other.mkdir()
    save_file(renamed, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_text((folder / "config.json").read_text())
    loaded = load_backbone(other, rngs=nnx.Rngs(0))
    assert not loaded.report.initialized and loaded.report.unused == ("lm_head.weight",)

    head, report = load_head(
        other, "lm", lambda key: build_head(loaded.config, "lm", 61, rngs=nnx.Rngs(params=key)), rngs=nnx.Rngs(0)
    )
    assert report.used and not report.initialized
    save_pretrained(
        tmp_path / "out", loaded.module, loaded.config, report=loaded.report + report, head=head, head_kind="lm"
    )
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"language_model", "vision_tower", "multi_modal_projector"}
    assert all(name.startswith("vision_tower.vision_model.") for name in names if name.startswith("vision_tower."))
    theirs, info = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    first = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    for (name, one), (_, two) in zip(first.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_bare_network_is_read_and_written(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint("llava", "Model")
    loaded = load_backbone(folder, rngs=nnx.Rngs(0))
    assert not loaded.report.unused and not loaded.report.initialized
    save_pretrained(tmp_path, loaded.module, loaded.config, report=loaded.report)
    _, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = values(load_backbone(tmp_path, rngs=nnx.Rngs(0)).module)
    for path, value in values(loaded.module).items():
        np.testing.assert_array_equal(again[path], value)


def config_of(kind: str, **fields: Any) -> Any:
    settings = dict(READERS[kind])
    for name, value in fields.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    return transformers.AutoConfig.for_model(kind, **settings)


def test_an_old_layer_too_many_is_named(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint("llava", SUFFIX)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = transformers.AutoConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = 1
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config.json does not fit.*language_model.layers.1"):
        load_backbone(tmp_path, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("text", sorted(TEXTS))
@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_every_pair_of_networks_has_a_table(text: str, tower: str) -> None:
    """A rule for each parameter, and a name for each module of transformers."""
    config = config_of("llava", text_config=dict(model_type=text), vision_config=dict(model_type=tower))
    module = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
    rules = {rule.path: rule for rule in family_of(config).mapping}
    names = {
        rule_names(rules[site.rule_path], layer)[0] for site in sites_of(module) for layer in site.layers or (None,)
    }
    with torch.device("meta"):
        theirs = transformers.AutoModel.from_config(config)
    assert names == {name for name, _ in theirs.named_parameters()}


def test_the_last_layers_to_be_trained_are_the_decoders() -> None:
    module = build_backbone(config_of("llava"), stack=StackOptions(train_last=1), rngs=nnx.Rngs(0))
    model = nnx.Dict(backbone=module)
    is_frozen = frozen_parameters(model, train_last=1)
    trained = {path.split("/")[1] + "/" + path.split("/")[2] for path in parameter_paths(model) if not is_frozen(path)}
    assert trained == {"layers/block1", "final_norm/scale"}


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("llava", dict(text_config=dict(model_type="gpt2")), "text_config.*'gpt2'.*supported: gemma"),
        ("llava", dict(vision_config=dict(model_type="vit")), "vision_config.*'vit'.*clip_vision_model"),
        ("llava", dict(vision_feature_layer=3), "vision_feature_layer is 3.*-3 to 2"),
        ("llava", dict(vision_feature_layer=[]), "vision_feature_layer"),
        ("llava", dict(vision_config=dict(attention_dropout=0.1)), "attention_dropout"),
        ("llava", dict(projector_hidden_act="none"), "'none'"),
        ("paligemma", dict(projection_dim=20), "projection_dim is 20.*32"),
        ("gemma3", dict(mm_tokens_per_image=3), "mm_tokens_per_image is 3.* 3,"),
        ("gemma3", dict(mm_tokens_per_image=4), "mm_tokens_per_image is 4"),
        ("gemma3", dict(text_config=dict(sliding_window=3)), "sliding_window is 3.*9 tokens"),
    ],
)
def test_what_is_not_implemented_is_named(kind: str, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build_backbone(config_of(kind, **fields), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", READERS)
def test_a_family_says_which_type_prompts_have(kind: str) -> None:
    module = nnx.eval_shape(lambda: build_backbone(config_of(kind), rngs=nnx.Rngs(0)))
    assert FAMILIES[kind].prompt_type == module.prompt_type == (kind == "paligemma")
    assert (module.image_vectors, module.image_size) == (9, 12)
    assert module.image_token_id == config_of(kind).image_token_index


def test_files_are_read_by_the_names_of_modules(make_checkpoint: Callable[..., Path]) -> None:
    family = FAMILIES["gemma3"]
    with TensorFiles(make_checkpoint("gemma3", SUFFIX), family.name_here) as files:
        assert "model.language_model.embed_tokens.weight" in files.names
        for name in files.names:
            assert family.name_here(family.name_in_files(name)) == name
