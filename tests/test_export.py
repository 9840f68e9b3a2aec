"""Exports open with the same numbers in plain orbax and in transformers with PyTorch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import task_config
from safetensors.numpy import load_file
from tiny_runs import changed, tiny_run, write_settings
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from instructrec_jax.adapters.dual_encoder import RetrievalHead
from instructrec_jax.answering.exporting import export, opening
from instructrec_jax.data.batch import BatchTexts, Text, lay_out
from instructrec_jax.data.packing import unpacked
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.export import main
from instructrec_jax.files import read_json, read_jsonl, write_json
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.vectors import embedder
from instructrec_jax.training.checkpoint import Checkpoints
from instructrec_jax.training.progress import Progress
from instructrec_jax.training.training_config import CheckpointConfig

OPEN_WITH_ORBAX = """
import sys
import jax, numpy as np, orbax.checkpoint as ocp
from pathlib import Path
for folder in sys.argv[1:]:
    params = ocp.StandardCheckpointer().restore(Path(folder).absolute() / "params")
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_put(params))
    flat = {"/".join(part.key for part in path): x for path, x in leaves}
    np.savez(folder + ".npz", **{name: np.asarray(x) for name, x in flat.items()})
assert jax.device_count() == 1 and not any(name.startswith("instructrec") for name in sys.modules)
"""


def run_of_step_1(kind: str, checkpoint: Path, folder: Path, **changes: Any) -> tuple[Path, Any]:
    """A run directory with one checkpoint of perturbed parameters, without training; and these parameters."""
    config = tiny_run(kind, checkpoint, folder, **changes)
    run = Path(config.run_dir)
    task, mesh = models.open_task(config, checkpoint), make_mesh(config.mesh)
    models.keep_declarations(checkpoint, run / "backbone", task, needs_weights=False)
    write_settings(config, run / "config.yaml")
    rng = np.random.default_rng(0)
    model = models.load_model(config, task, checkpoint, mesh)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), model.params)
    params = jax.device_put(params, model.shardings)
    checkpoints = Checkpoints(run, CheckpointConfig())
    checkpoints.save(1, {"params": params}, Progress("data"), {}, None)
    checkpoints.close()
    return run, nnx.merge(model.graphdef, params)


def flat(params: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(str(part.key) for part in path): np.asarray(x) for path, x in leaves}


def test_plain_orbax_opens_it_on_one_device(finished: Config, tmp_path: Path) -> None:
    export(Path(finished.run_dir), tmp_path / "as_is", format="orbax", step=6)
    main([finished.run_dir, "--out", str(tmp_path / "half"), "--dtype", "float16", "--step", "6", "--format", "orbax"])
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", OPEN_WITH_ORBAX, str(tmp_path / "as_is"), str(tmp_path / "half")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)

    opened = Run.open(Path(finished.run_dir))
    config, task, mesh = opened.config, opened.task, opened.mesh
    expected = flat(models.restored_model(config, task, Path(finished.run_dir), mesh, 6).params)
    metadata = read_json(tmp_path / "as_is" / "metadata.json")
    for folder, dtype in (("as_is", np.float32), ("half", np.float16)):
        opened = np.load(tmp_path / f"{folder}.npz")
        assert set(opened.files) == set(expected)
        for name, value in expected.items():
            assert opened[name].dtype == dtype
            np.testing.assert_array_equal(opened[name], value.astype(dtype), err_msg=name)
    assert metadata["parameters"] == {name: ["float32", *value.shape] for name, value in expected.items()}
    assert metadata["settings"]["task"]["labels"] == finished.task.labels  # type: ignore[attr-defined]


def test_transformers_gives_the_same_answers(
    finished: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(finished.run_dir)
    main([finished.run_dir, "--out", str(tmp_path / "hf")])  # the default format
    assert 'transformers.BertForSequenceClassification.from_pretrained("hf")' in capsys.readouterr().out
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    records = read_jsonl(finished.data.test[0].path)
    with torch.no_grad():
        inputs = tokenizer([r["instruction"] for r in records], padding=True, return_tensors="pt")
        logits = theirs(**inputs).logits.numpy()

    opened = Run.open(run)
    config, task, mesh = opened.config, opened.task, opened.mesh
    model = models.restored_model(config, task, run, mesh)
    encoded = run_data.RunData(config).cases(task, "test")
    ours = predictor(task, model.graphdef, mesh, run_data.buckets(config))(model.params)([e.text for e in encoded])
    np.testing.assert_allclose(np.stack(ours), logits, atol=1e-4)
    assert theirs.config.problem_type == "single_label_classification"
    answers = [theirs.config.id2label[int(i)] for i in logits.argmax(-1)]
    assert answers == [p["prediction"] for p in read_jsonl(run / "predictions.jsonl")]


def test_transformers_guesses_the_same_hidden_tokens(checkpoint: Path, tmp_path: Path) -> None:
    run, ours = run_of_step_1("masked_lm", checkpoint, tmp_path)
    export(run, tmp_path / "hf", format="hf")
    export(run, tmp_path / "half", format="hf", dtype="float16")
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(5, theirs.config.vocab_size, 20).astype(np.int32)
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
    batch = lay_out(BatchTexts([Text(tokens)], None), unpacked(np.array([20]), 20))
    np.testing.assert_allclose(ours.head(ours.backbone, ours.hidden(batch))[0], logits, atol=1e-4)
    whole, half = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "half"))
    assert {v.dtype for v in half.values()} == {np.dtype(np.float16)}
    assert all((half[name] == value.astype(np.float16)).all() for name, value in whole.items())


def test_a_retrieval_head_lies_beside_the_backbone(checkpoint: Path, tmp_path: Path) -> None:
    run, ours = run_of_step_1("retrieval", checkpoint, tmp_path, task__projection=16)
    export(run, tmp_path / "hf", format="hf")
    theirs = AutoModel.from_pretrained(tmp_path / "hf").eval()
    tokens = np.arange(5, 15, dtype=np.int32)
    with torch.no_grad():
        hidden = theirs(torch.tensor(tokens[None].astype(np.int64))).last_hidden_state[0].numpy()
    batch = lay_out(BatchTexts([Text(tokens)], None), unpacked(np.array([10]), 10))
    np.testing.assert_allclose(ours.hidden(batch)[0], hidden, atol=1e-4)
    head = load_file(tmp_path / "hf" / "retrieval_head.safetensors")
    assert {value.shape for value in head.values()} == {(32, 16), ()}


def test_an_exported_projection_opens_again(checkpoint: Path, tmp_path: Path) -> None:
    run, _ = run_of_step_1("retrieval", checkpoint, tmp_path, task__projection=16, task__pooling="mean")
    export(run, tmp_path / "hf", format="hf")
    tuned = Run.open(run)
    tuned_vectors = np.stack(tuned.predictor(tuned.task.item_texts))
    assert tuned_vectors.shape == (12, 16)
    config = changed(tuned.config, task__pooling=None, task__projection=None)
    exported = Run.open(tmp_path / "hf", config)
    np.testing.assert_allclose(np.stack(exported.predictor(exported.task.item_texts)), tuned_vectors, atol=1e-5)
    assert exported.task.buffer_shapes(32) == {"item_vectors": (12, 16)}
    kept = tmp_path / "again" / "backbone"  # of a run trained on it, without weights
    models.keep_declarations(tmp_path / "hf", kept, exported.task, needs_weights=False)
    texts = exported.task.catalogue.texts
    encode = embedder(exported.model, exported.task, kept, exported.mesh)  # the head has the projection's weights
    np.testing.assert_allclose(encode(texts), tuned_vectors, atol=1e-5)
    again = models.abstract_model(config, models.open_task(config, kept), kept, exported.mesh)
    assert again.params["head"]["projection"].shape == (32, 16)
    with pytest.raises(ValueError, match="task.projection"):
        Run.open(tmp_path / "hf", changed(config, task__projection=8))
    for other in ("similarity", "sequence"):
        task = task_config(other, tmp_path / "catalogue")
        opened = Run.open(tmp_path / "hf", changed(config, task=task))
        if other == "sequence":
            with pytest.raises(ValueError, match="2_Dense"):
                _ = opened.model
        else:
            assert opened.model.params["head"]["projection"].shape == (32, 16)
    dense = read_json(tmp_path / "hf" / "2_Dense" / "config.json")
    for field, value in {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}.items():
        write_json(tmp_path / "hf" / "2_Dense" / "config.json", dense | {field: value})
        with pytest.raises(ValueError, match=field):
            Run.open(tmp_path / "hf", config)
    write_json(tmp_path / "hf" / "2_Dense" / "config.json", dense | {"out_features": 8})
    with pytest.raises(ValueError, match="linear.weight"):
        _ = Run.open(tmp_path / "hf", config).model


@pytest.mark.parametrize(("pooling", "size"), [("cls", 16), ("mean", 32), ("max", None)])
def test_sentence_transformers_gives_the_same_vectors(
    checkpoint: Path, tmp_path: Path, pooling: str, size: int | None
) -> None:
    """A trained projection, square or not, is a Dense module of the exported folder."""
    library = pytest.importorskip("sentence_transformers")
    run, ours = run_of_step_1("retrieval", checkpoint, tmp_path, task__projection=size, task__pooling=pooling)
    export(run, tmp_path / "hf", format="hf")
    texts = ["a film about war", "a good old book", "music"]
    found = library.SentenceTransformer(str(tmp_path / "hf"), device="cpu").encode(texts)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text, vector in zip(texts, found, strict=True):
        tokens = np.array(tokenizer(text)["input_ids"], np.int32)
        layout = unpacked(np.array([len(tokens)]), len(tokens))
        batch = lay_out(BatchTexts([Text(tokens)], None), layout)
        expected = ours.head(ours.hidden(batch), batch.texts.segment_ids, 1)[0, 0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_the_readme_names_what_other_libraries_do_not_read() -> None:
    retrieval = RetrievalHead(8, None, rngs=nnx.Rngs(0), pooling="mean", temperature=1.0)
    assert "SentenceTransformer" in opening("hf", Path("out"), retrieval)[-1]
    assert "retrieval_head.safetensors" in opening("peft", Path("out"), retrieval)[-1]
    own = opening("hf", Path("out"), nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert "transformers" in own[0] and "retrieval_head.safetensors" in own[-1] and "Linear" in own[-1]
    assert not any("retrieval_head" in said for said in opening("orbax", Path("out"), retrieval))


def test_a_run_of_many_devices_is_exported_on_others(checkpoint: Path, tmp_path: Path) -> None:
    """A pod's mesh need not fit this machine."""
    run, _ = run_of_step_1("masked_lm", checkpoint, tmp_path)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("fsdp: 1", "fsdp: 128"))
    export(run, tmp_path / "out", format="orbax")
    assert (tmp_path / "out" / "metadata.json").is_file()


def test_nothing_is_written_over(finished: Config, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="--out"):
        export(Path(finished.run_dir), tmp_path / "out", format="hf")
    assert not list((tmp_path / "out").iterdir())


def test_a_broken_run_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "out", format="orbax")
    config = tiny_run("classification", checkpoint, tmp_path)
    run = Path(config.run_dir)
    run.mkdir()
    write_settings(config, run / "config.yaml")
    with pytest.raises(ValueError, match="config.json"):
        export(run, tmp_path / "out", format="orbax")
    task = models.open_task(config, checkpoint)
    models.keep_declarations(checkpoint, run / "backbone", task, needs_weights=False)
    with pytest.raises(ValueError, match="checkpoint"):
        export(run, tmp_path / "out", format="orbax")
    assert not (run / "checkpoints").exists() and not [p for p in tmp_path.iterdir() if "out" in p.name]
