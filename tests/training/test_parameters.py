"""What is frozen and how fast the rest learns, by path and layer."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from helpers import Setup, run_steps
from tiny_runs import changed, tiny_run

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.files import read_json
from instructrec_jax.runs import model as models
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train
from instructrec_jax.training.optimizer import path_name
from instructrec_jax.training.parameters import (
    default_learning_rate,
    frozen_parameters,
    learning_rate_factors,
    with_learning_rate,
)
from instructrec_jax.training.training_config import OptimizerConfig


def paths(tree: object) -> set[str]:
    return {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def parts(checkpoint: Path, tmp_path: Path, **options: object) -> tuple[set[str], set[str]]:
    setup = Setup("classification", checkpoint, tmp_path, **options)
    return paths(setup.state.params), paths(setup.state.frozen)


def test_patterns_freeze_by_path_and_a_useless_one_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    trained, frozen = parts(checkpoint, tmp_path, freeze=["embeddings/", r"layers/.*/mlp_in/bias$"])
    assert frozen == {path for path in trained | frozen if "embeddings/" in path or path.endswith("mlp_in/bias")}
    assert len(frozen) == 4
    with pytest.raises(ValueError, match="backbone.freeze.*embedings"):
        parts(checkpoint, tmp_path, freeze=["embedings"])
    with pytest.raises(ValueError, match="backbone.freeze"):
        parts(checkpoint, tmp_path, freeze=["("])


def test_the_last_layers_train_and_the_others_have_no_moments(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("classification", checkpoint, tmp_path, train_last=1)
    trained, frozen = paths(setup.state.params), paths(setup.state.frozen)
    assert {p.split("/")[2] for p in trained if p.startswith("backbone/layers")} == {"block1"}
    assert {p.split("/")[2] for p in frozen if p.startswith("backbone/layers")} == {"block0"}
    assert "backbone/pooler/kernel" in trained and "head/output/kernel" in trained
    assert "backbone/word_embeddings/table" in frozen and "backbone/embedding_norm/scale" in frozen
    moments = {path.rsplit("mu/")[-1] for path in paths(setup.state.optimizer[1].mu)}
    assert moments == trained
    before = jax.device_get(setup.state.frozen)
    run_steps(setup, [setup.batch()])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(setup.state.frozen), before)


def test_a_split_stack_computes_the_same(checkpoint: Path) -> None:
    place = np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9))
    arguments = place + 5, np.ones_like(place), place, np.zeros_like(place)
    whole = load_backbone(checkpoint, rngs=nnx.Rngs(0)).module(*arguments)
    for last in (0, 1, 2):
        module = load_backbone(checkpoint, stack=StackOptions(train_last=last), rngs=nnx.Rngs(0)).module
        np.testing.assert_allclose(module(*arguments), whole, atol=1e-6)
    with pytest.raises(ValueError, match="train_last is 3.*2"):
        load_backbone(checkpoint, stack=StackOptions(train_last=3), rngs=nnx.Rngs(0))


def test_layers_learn_slower_the_lower_they_are(checkpoint: Path, tmp_path: Path) -> None:
    """Adam's first update has magnitude η for every entry with a gradient."""
    setup = Setup("classification", checkpoint, tmp_path)
    factors = learning_rate_factors(setup.model.network, 0.5)
    assert factors["head/output/kernel"] == 1 and factors["backbone/pooler/kernel"] == 1
    np.testing.assert_array_equal(factors["backbone/layers/block0/attention/query/kernel"], [0.25, 0.5])
    np.testing.assert_array_equal(factors["backbone/layers/block0/mlp_in/bias"], [0.25, 0.5])
    assert factors["backbone/word_embeddings/table"] == 0.125
    settings = dict(warmup=0.0, schedule="constant", weight_decay=0.0, clip_norm=None, epsilon=1e-13)
    optimizer = OptimizerConfig(learning_rate=1e-3, **settings)
    setup = Setup("classification", checkpoint, tmp_path, layer_decay=0.5, optimizer=optimizer)
    before = jax.device_get(setup.state.params)
    _, after = run_steps(setup, [setup.batch()])
    moved = jax.tree.map(lambda a, b: np.abs(a - b), after, before)
    kernel = moved["backbone"]["layers"]["block0"]["mlp_in"]["kernel"]
    np.testing.assert_allclose([np.median(layer) for layer in kernel], [0.25e-3, 0.5e-3], rtol=1e-3)
    np.testing.assert_allclose(np.median(moved["head"]["output"]["kernel"]), 1e-3, rtol=1e-3)


def test_a_vocabulary_head_is_frozen_beside_lora(checkpoint: Path, tmp_path: Path) -> None:
    for kind, head_trained in (("masked_lm", False), ("classification", True)):
        setup = Setup(kind, checkpoint, tmp_path, lora=LoraConfig(rank=2, targets=["query"]))
        trained = paths(setup.state.params)
        assert {p for p in trained if p.startswith("backbone/")} == {
            f"backbone/layers/block0/attention/query/lora/{name}" for name in "ab"
        }
        assert any(p.startswith("head/") for p in trained) == head_trained
        assert not frozen_parameters(setup.model.network)("head/output/kernel")


def lora_of(block: int) -> set[str]:
    return {f"backbone/layers/block{block}/attention/query/lora/{name}" for name in "ab"}


def test_settings_that_freeze_add_up_beside_lora(checkpoint: Path, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, targets=["query"])
    trained, frozen = parts(checkpoint, tmp_path, lora=lora, train_last=1)
    assert {path for path in trained if path.startswith("backbone/")} == lora_of(1) and lora_of(0) <= frozen
    trained, _ = parts(checkpoint, tmp_path, lora=lora, freeze=["lora/a$"])
    assert {path for path in trained if path.startswith("backbone/")} == {
        "backbone/layers/block0/attention/query/lora/b"
    }


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("lora", dict(lora=LoraConfig(rank=2), freeze=["/lora/"])),
        ("lora", dict(lora=LoraConfig(rank=2, targets=["query"]), train_last=0)),
        ("backbone.train_last", dict(train_last=1, freeze=["^backbone/"])),
        ("lora.alpha", dict(lora=LoraConfig(alpha=32.0))),
        ("lora.targets", dict(lora=LoraConfig(targets=["query"]))),
        ("lora.dropout", dict(lora=LoraConfig(dropout=0.1))),
        ("lora.rslora", dict(lora=LoraConfig(rslora=True))),
        ("lora.dropout", dict(lora=LoraConfig(adapter="nowhere", dropout=0.1))),
        ("lora.adapter", dict(lora=LoraConfig(adapter="nowhere", rank=2))),
        ("lora.rank", dict(lora=LoraConfig(rank=10**9))),
        ("lora.rank", dict(lora=LoraConfig(rank=33, targets=["query", "intermediate.dense"]))),
        ("lora.alpha", dict(lora=LoraConfig(rank=2, alpha=float("nan")))),
    ],
)
def test_a_setting_without_an_effect_is_refused(
    checkpoint: Path, tmp_path: Path, setting: str, options: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=rf"{setting}\b"):
        parts(checkpoint, tmp_path, **options)


@pytest.mark.parametrize(
    ("setting", "kind", "options"),
    [
        ("lora", "sequence", dict(lora=LoraConfig(rank=2))),  # its text encoder makes vectors once
        ("backbone.train_last", "sequence", dict(train_last=1)),
        ("lora", "sequence", dict(lora=LoraConfig(rank=2), text=False)),  # no text encoder at all
        ("backbone.train_last", "sequence", dict(train_last=1, text=False)),
    ],
)
def test_what_a_task_does_not_train_cannot_be_asked_for(
    checkpoint: Path, tmp_path: Path, setting: str, kind: str, options: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=rf"{setting}\b"):
        Setup(kind, checkpoint, tmp_path, **options)


def test_the_default_learning_rate_follows_what_is_trained(checkpoint: Path, tmp_path: Path) -> None:
    settings = OptimizerConfig()

    def rate(random_init: bool = False, **options: object) -> float | None:
        setup = Setup("classification", checkpoint, tmp_path, **options)
        found, why = with_learning_rate(settings, setup.model.network, setup.model.is_frozen, random_init=random_init)
        assert f"{found.learning_rate:g}" in why
        return found.learning_rate

    assert rate() == 5e-5
    assert rate(lora=LoraConfig(rank=2)) == 2e-4
    assert rate(freeze=["^backbone/"]) == 1e-3
    assert rate(random_init=True) == 1e-3
    assert default_learning_rate(["head/output/kernel"])[0] == 1e-3
    assert default_learning_rate(["head/table"], vocabulary_heads=["head/"])[0] == 5e-5
    assert default_learning_rate(["backbone/layers/block0/query/lora/a", "head/table"])[0] == 2e-4


def test_a_learning_rate_of_nothing_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def choose(settings: OptimizerConfig, **options: object) -> tuple[OptimizerConfig, str]:
        setup = Setup("masked_lm", checkpoint, tmp_path, **options)
        return with_learning_rate(settings, setup.model.network, setup.model.is_frozen, random_init=False)

    with pytest.raises(ValueError, match="optimizer.head_learning_rate"):
        choose(OptimizerConfig(head_learning_rate=1e-3), lora=LoraConfig(rank=2))
    with pytest.raises(ValueError, match="optimizer.layer_decay"):
        choose(OptimizerConfig(layer_decay=0.5), freeze=["^backbone/"])
    chosen, why = choose(OptimizerConfig(learning_rate=3e-4, head_learning_rate=1e-3))
    assert chosen.learning_rate == 3e-4 and "0.0003" in why and "0.001" in why


def test_frozen_weights_are_not_in_the_checkpoint_and_must_stay(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    base = shutil.copytree(checkpoint, tmp_path / "base")
    config = tiny_run("classification", base, tmp_path, backbone__freeze=["^backbone/"], steps=4)
    train(config)
    names = paths(
        ocp.PyTreeCheckpointer().metadata(Path(config.run_dir) / "checkpoints" / "4" / "state").item_metadata.tree
    )
    assert not any("backbone" in name for name in names) and any("head" in name for name in names)
    assert read_json(Path(config.run_dir) / "backbone" / "weights.json")["folder"] == str(base)
    opened = Run.open(Path(config.run_dir))
    _, task, mesh = opened.config, opened.task, opened.mesh
    restored = models.restored_model(config, task, Path(config.run_dir), mesh)
    expected = models.load_model(config, task, checkpoint, mesh)
    jax.tree.map(np.testing.assert_array_equal, restored.params["backbone"], expected.params["backbone"])

    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="base.*backbone.path"):
        models.restored_model(config, task, Path(config.run_dir), mesh)
    assert models.restored_model(changed(config, backbone__path=str(moved)), task, Path(config.run_dir), mesh)
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = b"\0\0\0\0"
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="elsewhere"):
        models.restored_model(changed(config, backbone__path=str(moved)), task, Path(config.run_dir), mesh)


def test_a_decoder_lies_above_its_encoder(language_models: dict[str, Path], tmp_path: Path) -> None:
    setup = Setup("language_model", language_models["t5"], tmp_path, train_last=1)
    factors = learning_rate_factors(setup.model.network, 0.5)
    depths = {path: np.round(5 + np.log2(factor)).tolist() for path, factor in factors.items()}
    assert depths["backbone/word_embeddings/table"] == 0
    assert depths["backbone/encoder/layers/block0/attention/query/kernel"] == [1, 2]
    assert depths["backbone/encoder/final_norm/scale"] == 3
    assert depths["backbone/decoder/layers/block0/attention/query/kernel"] == [3]
    assert depths["backbone/decoder/layers/block1/attention/query/kernel"] == [4]
    assert depths["backbone/decoder/final_norm/scale"] == 5
    trained = paths(setup.state.params)
    assert {path.rpartition("/layers/")[0] or path for path in trained} == {
        "backbone/decoder",
        "backbone/decoder/final_norm/scale",
    }
