"""Tasks and models of settings: what does not fit is refused by the setting's name, before any weights are read."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from helpers import task_config
from tiny_runs import changed

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.backbones.folder import weights_fingerprint
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.files import write_json
from instructrec_jax.preparation import demos
from instructrec_jax.runs.adapting import adapted
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import (
    backbone_folder,
    compute_dtype,
    frozen_fingerprint,
    load_model,
    open_task,
    prepare_data,
    weights_folder,
)
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.tasks import ClassificationConfig

PLAIN = Config(task=ClassificationConfig(labels=["a", "b"]))


def test_a_backbone_by_folder_or_by_the_name_of_a_demo(checkpoint: Path) -> None:
    assert backbone_folder(str(checkpoint)) == checkpoint
    for name in demos.names():
        assert (backbone_folder(name) / "config.json").is_file()
    with pytest.raises(ValueError, match=rf"backbone.path.*{demos.names()[0]}"):
        backbone_folder("")
    with pytest.raises(ValueError, match="nowhere"):
        backbone_folder("./nowhere")


def test_data_are_prepared_only_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    completed: list[Path] = []
    demo = SimpleNamespace(prepare=written.append, complete=completed.append)
    monkeypatch.setattr(demos, "find", lambda name, setting: demo)
    config = changed(Config(task=task_config("retrieval", tmp_path / "here")), data__prepare="films")
    prepare_data(config)
    assert written == [] and completed == [tmp_path / "here"]  # by what an earlier version did not write
    there = changed(config, task=type(config.task)(catalogue=str(tmp_path / "there")))
    prepare_data(there)
    assert written == [tmp_path / "there"]
    prepare_data(changed(there, data__prepare=None))
    assert len(written) == len(completed) == 1


def test_an_unknown_demo_is_named() -> None:
    with pytest.raises(ValueError, match="data.prepare.*'flims'"):
        prepare_data(changed(PLAIN, data__prepare="flims"))


@pytest.mark.parametrize("length", [1, 2, 65, 1000])
def test_lengths_that_the_network_cannot_read_are_named(length: int, checkpoint: Path) -> None:
    """[CLS] and [SEP] leave no room below three; the tiny BERT has 64 positions."""
    with pytest.raises(ValueError, match=f"data.max_length is {length}"):
        open_task(changed(PLAIN, data__max_length=length), checkpoint)


@pytest.mark.parametrize("length", [3, 64])
def test_the_context_is_that_of_the_settings_and_the_network(length: int, checkpoint: Path) -> None:
    config = changed(PLAIN, data__max_length=length, data__truncate="left", seed=7)
    context = open_task(config, checkpoint).context
    assert (context.max_length, context.truncate, context.seed, context.kind) == (length, "left", 7, "encoder")
    assert context.vocab_size == 112 and context.folder == checkpoint and context.held_out == ()


def test_dtypes() -> None:
    assert compute_dtype(changed(PLAIN, backbone__dtype="bfloat16")) == jnp.bfloat16
    assert compute_dtype(changed(PLAIN, backbone__dtype="auto")) == jnp.float32  # on a CPU


def test_codes_are_not_trained(checkpoint: Path) -> None:
    config = changed(PLAIN, backbone__quantize="int8", data__max_length=32)
    task, mesh = open_task(config, checkpoint), make_mesh(config.mesh)
    for load in (load_model, TrainingSetup.abstract):
        with pytest.raises(ValueError, match="lora.rank.*compress"):
            load(config, task, checkpoint, mesh)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backbone__quantize_group": 32}, "backbone.quantize_group has no effect"),
        ({"backbone__quantize": "int8", "backbone__quantize_group": 7}, "backbone.quantize: the group is 7"),
        ({"lora": LoraConfig(rank=-1)}, "lora.rank"),
    ],
)
def test_adapters_that_cannot_be(changes: dict[str, Any], named: str) -> None:
    model: Any = SimpleNamespace(backbone=None, head=None)
    with pytest.raises(ValueError, match=named):
        adapted(model, changed(PLAIN, **changes), None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"lora": LoraConfig(rank=4)}, "lora"), ({"backbone__quantize": "nf4"}, "backbone.quantize")],
)
def test_adapters_of_a_network_without_backbone(changes: dict[str, Any], named: str) -> None:
    model: Any = SimpleNamespace(head=None)
    with pytest.raises(ValueError, match=named):
        adapted(model, changed(PLAIN, **changes), None, None)  # type: ignore[arg-type]
    assert adapted(model, PLAIN, None, None) is model  # type: ignore[arg-type]


# ------------------------------------------------------------------ frozen weights


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(a run directory, the folder of its frozen weights)"""
    weights = tmp_path / "weights"
    shutil.copytree(checkpoint, weights)
    kept = {"folder": str(weights), "fingerprint": weights_fingerprint(weights)}
    write_json(tmp_path / "run" / "backbone" / "weights.json", kept)
    return tmp_path / "run", weights


def test_frozen_weights_are_found_again_where_they_were_or_are_now(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, weights = run
    assert weights_folder(changed(PLAIN, backbone__path="gone"), folder) == weights
    moved = weights.rename(tmp_path / "moved")
    assert weights_folder(changed(PLAIN, backbone__path=str(moved)), folder) == moved
    with pytest.raises(ValueError, match="backbone.path"):
        weights_folder(changed(PLAIN, backbone__path="gone"), folder)


def test_changed_weights_are_refused(run: tuple[Path, Path]) -> None:
    folder, weights = run
    file = weights / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=f"{folder.name}.*{weights.name}"):
        weights_folder(changed(PLAIN, backbone__path=str(weights)), folder)


def test_a_run_without_frozen_weights_has_no_fingerprint(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, weights = run
    assert frozen_fingerprint(folder) == weights_fingerprint(weights) and frozen_fingerprint(tmp_path) is None
    (folder / "backbone" / "weights.json").write_text('{"folder": 3}')
    with pytest.raises(ValueError, match="weights.json"):
        frozen_fingerprint(folder)
