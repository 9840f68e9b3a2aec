"""What the compiler is given: a folder with a tokenizer, and a batch of shapes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import transformers

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.data.batch import Batch, Rows
from instructrec_jax.data.packing import max_segments
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.planning import ARCHITECTURES
from instructrec_jax.planning.compiled_step import abstract_batch, compile_step, planning_folder, texts_of
from instructrec_jax.runs.config import Config, parse
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import open_task
from instructrec_jax.training.flops import Texts

# ------------------------------------------------------------------ the folder


def test_a_folder_with_a_tokenizer_is_taken_as_it_is(checkpoint: Path) -> None:
    with planning_folder(str(checkpoint)) as (folder, placeholder):
        assert folder == checkpoint and not placeholder


def test_a_config_alone_gets_a_placeholder_tokenizer_that_goes_again(tmp_path: Path) -> None:
    transformers.LlamaConfig(vocab_size=64).save_pretrained(tmp_path)
    with planning_folder(str(tmp_path)) as (folder, placeholder):
        assert placeholder and json.loads((folder / "config.json").read_text())["vocab_size"] == 64
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        names = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
        assert all(getattr(tokenizer, f"{name}_token_id") is not None for name in names)
    assert not folder.exists() and [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", sorted(path.stem for path in ARCHITECTURES.glob("*.json")))
def test_every_architecture_of_the_package_opens(name: str) -> None:
    with planning_folder(name) as (folder, placeholder):
        config = read_config(folder)
        assert placeholder and input_limit(config) > 100 and open_tokenizer(folder, config)("word")["input_ids"]


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(ValueError, match="llama9"), planning_folder("./llama9"):
        pass


# ------------------------------------------------------------------ the batch


def config_of(folder: Path, *more: str, task: str = "language_model") -> Config:
    length = [] if any("max_length" in option for option in more) else ["--data.max_length", "32"]
    return parse(Config, ["--task.type", task, "--backbone.path", str(folder), *length, *more], default=None)


def batch_of(config: Config, folder: Path, mesh: MeshConfig) -> Batch:
    return abstract_batch(config, open_task(config, folder), make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp]))  # type: ignore[operator]


def test_a_language_model_has_full_rows(language_models: dict[str, Path]) -> None:
    folder = language_models["llama"]
    rows = config_of(folder, "--data.batch_rows", "8", "--data.batch_size", "null")
    batch = batch_of(rows, folder, MeshConfig(data=2, fsdp=2))
    leaves = jax.tree.leaves(batch)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == np.int32 for leaf in leaves)
    assert batch.texts.tokens.shape == (8, 32) and batch.text_numbers.shape == (8, max_segments(32))
    assert batch.targets is None and batch.texts.tokens.sharding.num_devices == 4  # type: ignore[union-attr]
    # of a number of examples, as many rows, up to the multiple that the mesh needs
    examples = config_of(folder, "--data.batch_size", "6", "--accumulation", "2")
    assert batch_of(examples, folder, MeshConfig(data=2, fsdp=2)).texts.tokens.shape == (8, 32)
    with pytest.raises(ValueError, match="data.batch_rows"):
        batch_of(
            config_of(folder, "--data.batch_rows", "6", "--data.batch_size", "null"), folder, MeshConfig(data=1, fsdp=4)
        )


def test_an_encoder_decoder_has_targets(language_models: dict[str, Path]) -> None:
    folder = language_models["t5"]
    config = config_of(folder, "--data.batch_rows", "4", "--data.batch_size", "null", "--task.max_target_length", "16")
    batch = batch_of(config, folder, MeshConfig(data=1, fsdp=1))
    assert batch.targets is not None and batch.targets.tokens.shape == batch.own.labels.shape == (4, 16)
    assert batch.texts.tokens.shape == (4, 32)


def test_other_tasks_have_the_first_batch_of_their_data(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "a film " * (n % 3 + 1), "output": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ["--data.train", str(tmp_path / "rows.jsonl"), "--data.batch_size", "8", "--task.labels", "[a, b]"]
    config = config_of(checkpoint, *source, task="classification")
    found = batch_of(config, checkpoint, MeshConfig(data=2, fsdp=1))
    first = next(RunData(config).training(open_task(config, checkpoint), 2).batches(0, 1, None)).batch
    assert jax.tree.structure(found) == jax.tree.structure(first)
    for shape, array in zip(jax.tree.leaves(found), jax.tree.leaves(first), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)


def test_a_language_model_that_compares_answers_has_its_own_arrays(
    language_models: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"instruction": "a film " * (n % 3 + 1), "output": "good", "candidates": ["bad"]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ["--data.train", str(tmp_path / "rows.jsonl"), "--data.batch_size", "4", "--task.template", "plain"]
    config = config_of(language_models["llama"], *source, task="preference")
    step = compile_step(config, language_models["llama"], make_mesh(MeshConfig(), jax.devices()[:1]))
    assert step.state.buffers["reference"].shape == (3, 2)  # of three different prompts
    assert step.texts.tokens > 0


# ------------------------------------------------------------------ sizes for the FLOP count


def sizes(target: int | None = None, **task: Any) -> Texts:
    def rows(length: int) -> Rows:
        return Rows(*[np.zeros((4, length), np.int32)] * 3)

    numbers = np.zeros((4, 5), np.int32)
    batch = Batch(rows(32), np.zeros((4, 32), np.int32), numbers, None if target is None else rows(target), None)
    settings: dict[str, Any] = {"per_token": False, "subtasks": {}, "predicts_words": False}
    kind = task.pop("kind", "encoder")
    return texts_of(batch, SimpleNamespace(**(settings | task), context=SimpleNamespace(kind=kind)))  # type: ignore[arg-type]


def test_sizes_of_texts() -> None:
    assert sizes() == Texts(128, 32, False, pooled=20)  # a vector of each of five texts in four rows
    assert sizes(per_token=True) == sizes(subtasks={"a": 1}) == Texts(128, 32, False)
    assert sizes(predicts_words=True, kind="decoder") == Texts(128, 32, True)
    assert sizes(16, predicts_words=True, kind="encoder_decoder") == Texts(128, 32, False, 64, 16)
