"""What is frozen and how fast the rest learns, by path and layer."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from helpers import Setup, run_steps
from tiny_runs import changed, tiny_run

from instructrec_jax.adapters.lora import LoraConfig
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.files import read_json
from instructrec_jax.runs import model as models
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train
from instructrec_jax.training.optimizer import OptimizerConfig, path_name
from instructrec_jax.training.parameters import frozen_parameters, learning_rate_factors


def paths(tree: object) -> set[str]:
    return {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def parts(checkpoint: Path, tmp_path: Path, **options: object) -> tuple[set[str], set[str]]:
    setup = Setup("classification", checkpoint, tmp_path, **options)
    return paths(setup.state.params), paths(setup.state.frozen)


def test_patterns_freeze_by_path_and_a_useless_one_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    trained, frozen = parts(checkpoint, tmp_path, freeze=["embeddings/", r"layers/.*/mlp_in/bias$"])
    assert frozen == {path for path in trained | frozen if "embeddings/" in path or path.endswith("mlp_in/bias")}
    assert len(frozen) == 4
    with pytest.raises(ValueError, match="backbone.freeze: 'embedings' matches no parameter. Some are: backbone/"):
        parts(checkpoint, tmp_path, freeze=["embedings"])
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
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
    with pytest.raises(ValueError, match="last 3 layers are to be trained, but the network has 2"):
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
    with pytest.raises(ValueError, match="no longer in .*base.*put them back, or set backbone.path"):
        models.restored_model(config, task, Path(config.run_dir), mesh)
    assert models.restored_model(changed(config, backbone__path=str(moved)), task, Path(config.run_dir), mesh)
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = b"\0\0\0\0"
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="or they changed"):
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
