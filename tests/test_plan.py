"""The verb plan, for virtual CPU devices, and for a TPU topology if the TPU compiler is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from instructrec_jax import plan
from instructrec_jax.distributed import chips
from instructrec_jax.distributed.mesh import batch_sharding, make_mesh
from instructrec_jax.planning import search as planning_search
from instructrec_jax.planning.compiled_step import planning_folder
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, parse
from instructrec_jax.training.checkpoint import abstract
from instructrec_jax.training.step import make_predict_step

HIDDEN, LAYERS, MLP, VOCAB, LENGTH = 128, 2, 256, 512, 128
SIZES = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=MLP,
    num_hidden_layers=LAYERS,
    num_attention_heads=1,
    num_key_value_heads=1,
    max_position_embeddings=LENGTH,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> str:
    path = tmp_path_factory.mktemp("sizes")
    (path / "config.json").write_text(json.dumps(SIZES))
    return str(path)


def settings(folder: str, *more: str) -> list[str]:
    rows = ["--data.batch_size", "null", "--data.batch_rows", "16", "--data.max_length", str(LENGTH)]
    return ["--backbone.path", folder, "--mesh.data", "1", "--mesh.fsdp", "8", *rows, *more]


def config_of(folder: str, *more: str) -> Config:
    return parse(Config, ["--task.type", "language_model", *settings(folder, *more)], default=None)


def test_bytes_of_a_device_are_those_counted_by_hand(folder: str) -> None:
    found = plan.plan(config_of(folder), "cpu:8")
    matrices = 2 * VOCAB * HIDDEN + LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * MLP)
    scales = (2 * LAYERS + 1) * HIDDEN
    assert found.parameters == 4 * (matrices + scales) // 8
    moments = found.optimizer - 2 * found.parameters
    assert 0 <= moments <= 64  # two moments per parameter, and counters
    assert found.peak >= found.parameters + found.optimizer + found.temporaries
    assert found.tokens == 16 * LENGTH
    assert found.chip is None and found.fits and not found.seconds  # a CPU's peak is unknown
    # all matrices are gathered; gradients are reduced or reduce-scattered
    assert found.collectives.sizes["all-gather"] >= 4 * LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * MLP)


def test_the_verb_prints_the_plan_and_the_index(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan.main(["--topology", "cpu:8", "--items", "100000", *settings(folder)])
    printed = capsys.readouterr()
    for words in ("8 chips, mesh data 1 x fsdp 8", "parameters", "optimizer", "temporaries", "peak", "all-gather"):
        assert words in printed.out
    assert "Index of 100,000 items" in printed.out
    assert "tokenizer" in printed.err


def test_two_slices(folder: str) -> None:
    with pytest.raises(ValueError, match="--mesh.dcn_data 2"):
        plan.plan(config_of(folder, "--mesh.fsdp", "4"), "cpu:4", slices=2)
    found = plan.plan(config_of(folder, "--mesh.fsdp", "4", "--mesh.dcn_data", "2"), "cpu:4", slices=2)
    assert (found.chips, found.mesh["data"], found.mesh["fsdp"]) == (8, 2, 4)
    gradients = 8 * found.parameters // 2  # per device, which holds a quarter of the parameters
    assert 0 < found.between_slices <= 4 * gradients


@pytest.mark.parametrize(
    ("topology", "more", "message"),
    [
        ("v9:4x4", (), "v9:4x4"),
        ("cpu:three", (), "cpu:8"),
        ("cpu:4096", (), "xla_force_host_platform_device_count=4096"),
        ("cpu:6", (), "mesh.data"),  # 1 x 8 is not 6
        ("cpu:8", ("--data.batch_rows", "12"), "multiple of 8"),
    ],
)
def test_what_cannot_be_planned(folder: str, topology: str, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.plan(config_of(folder, *more), topology)


def test_without_the_compiler_for_tpus(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_jax.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "instructrec_jax\[plan\]"'):
        plan.plan(config_of(folder), "v5e:2x4")


def test_seventy_billion_parameters_are_shapes() -> None:
    config = parse(Config, ["--task.type", "language_model", "--backbone.path", "llama3-70b"], default=None)
    with planning_folder("llama3-70b") as (folder, _):
        task = models.open_task(config, folder)
        model = models.abstract_model(config, task, folder, make_mesh(config.mesh, jax.devices()[:1]))
    arrays = jax.tree.leaves(model.params)
    assert all(isinstance(array, jax.ShapeDtypeStruct) for array in arrays)
    assert 70e9 < sum(array.size for array in arrays) < 71e9


def test_search_ranks_what_fits(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning_search, "MOST", 2)
    plan.main(["--topology", "cpu:8", "--search", *settings(folder)])
    printed = capsys.readouterr()
    assert printed.err.count("remat none, accumulation 1") == 2  # printed one by one
    assert "2 of 2 fit" in printed.out
    sizes = [float(line.split()[0]) for line in printed.out.splitlines()[1:]]
    assert sizes == sorted(sizes)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the compiler for TPUs is not installed")
def test_a_tpu_topology(folder: str, tmp_path: Path) -> None:
    found = plan.plan(config_of(folder, "--backbone.remat", "full"), "v5e:2x4")
    assert found.chips == 8 and found.chip is chips.CHIPS["v5e"]
    assert found.parameters == plan.plan(config_of(folder), "cpu:8").parameters
    assert found.fits and found.peak < 2**30
    assert set(found.seconds) == {"compute", "HBM", "links"} and 0 < found.mfu <= 1
    assert found.hardware_flops > found.model_flops  # remat recomputes layers
    assert found.compiler_seconds is not None and found.compiler_seconds > 0


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the compiler for TPUs is not installed")
def test_predictions_for_several_tpus_compile(folder: str) -> None:
    """With the attention kernel, also if the number of rows is not a multiple of the chips."""
    config = config_of(folder, "--mesh.fsdp", "4", "--backbone.dtype", "bfloat16")
    mesh = make_mesh(config.mesh, list(chips.topology_devices("v5e:2x2", 1)))
    names = ("tokens", "token_types", "segment_ids", "positions", "labels", "supervised")
    with planning_folder(folder) as (files, _):
        task = models.open_task(config, files)
        model = models.abstract_model(config, task, files, mesh)
    step = make_predict_step(task, model.graphdef, mesh)
    for rows in (4, 3):
        shape = jax.ShapeDtypeStruct((rows, LENGTH), np.int32, sharding=batch_sharding(mesh, rows))
        params = abstract(model.params, model.shardings)
        compiled = step.lower(params, dict.fromkeys(names, shape)).compile()  # type: ignore[attr-defined]
        assert "splash" in compiled.as_text()
