"""Compressed runs: opened by the other verbs, with the answers that their codes stand for; what is refused."""

import errno
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from tiny_runs import compressed_run, language_run, tiny_run, untrained_run

from instructrec_jax import compress as verb
from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.quantized import unpack
from instructrec_jax.answering.beginning import begun_from
from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.backbones.compressed_tensors import packed
from instructrec_jax.compression import compress as room
from instructrec_jax.compression.compress import compress, shown
from instructrec_jax.compression.quantization import Quantization
from instructrec_jax.files import read_json
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.directory import is_run_dir
from instructrec_jax.runs.model import load_model, open_task
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.stored import flat
from instructrec_jax.tasks.generation.writing_config import LanguageModelConfig

TEXTS = ["a dull film about a book", "the new bright film"]


def probabilities(run: Any) -> np.ndarray:
    return np.array([list(each.probabilities.values()) for each in run.predict(TEXTS)])


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def dense(finished: Any) -> Run:
    return Run.open(finished.run_dir)


@pytest.fixture(scope="module")
def w8a8(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A compressed run, what was found out, and the source's files before and after."""
    out, before = tmp_path_factory.mktemp("compressed") / "w8a8", files(Path(finished.run_dir))
    found = compress(finished.run_dir, out, Quantization(activations="int8"), calibration=8)
    return out, found, (before, files(Path(finished.run_dir)))


def test_a_compressed_run_opens_alone_and_answers_as_before(w8a8, dense):
    out, found, (before, after) = w8a8
    run = Run.open(out)
    assert not run.config.lora.on and not (out / "backbone" / "weights.json").exists()
    np.testing.assert_allclose(probabilities(run), probabilities(dense), atol=0.01)
    assert before == after
    assert not list(out.parent.glob(".*")), "the partial folder is gone"
    floats = Run.open(out, ["--backbone.quantize_activations", "none"])
    assert floats.weights_identity() != run.weights_identity(), "vectors of items of one are not those of the other"


def test_the_report_has_bytes_speed_quality_and_the_error_of_each_layer(w8a8, dense):
    out, found, _ = w8a8
    record = read_json(out / "compression.json", dict)
    run = Run.open(out)
    assert record["bytes"]["parameters"][1] == sum(leaf.nbytes for leaf in jax.tree.leaves(run.model.params))
    codes = [value for path, value in flat(run.model.params).items() if path.endswith("/codes")]
    assert {str(value.dtype) for value in codes} == {"int8"}
    assert found.after < 0.45 * found.before
    assert record["loss"] == found.quality.loss and found.speed.unit == "texts/s"
    names = [layer["layer"] for layer in record["layers"]]
    assert len(names) == len(set(names)) == 13  # six of each of two layers, and the pooler
    assert all(0 < layer["error"] < 0.05 for layer in record["layers"])
    before, after = found.quality.training
    texts = dense.data.cases(dense.task, "test")
    logits = np.stack(dense.predictor([each.text for each in texts])).astype(np.float64)
    answers = [dense.task.labels.index(each.example.output) for each in texts]
    log_sum = np.log(np.exp(logits).sum(-1))
    assert before == pytest.approx(np.mean(log_sum - logits[np.arange(len(texts)), answers]), rel=1e-5)
    assert before != after and after == pytest.approx(before, rel=0.01)
    assert "of the bytes" in shown(found) and "macro_f1" in shown(found)


def test_lora_is_trained_on_the_codes_and_leaves_them(w8a8, finished, tmp_path):
    """The new run starts from the codes, scales and head of the compressed one, bit for bit, and then from its own."""
    out, *_ = w8a8
    config = tiny_run("classification", Path(finished.backbone.path), tmp_path, init_from=str(out))
    config = replace(config, lora=LoraConfig(rank=2), task=Run.open(out).config.task)
    begun = begun_from(config)
    assert begun.backbone.quantize_activations == "int8" and begun.backbone.quantize_embeddings
    compressed = Run.open(out)
    task = open_task(begun, Path(begun.backbone.path))
    model = load_model(begun, task, Path(begun.backbone.path), compressed.mesh)
    first, now = flat(compressed.model.params), flat(model.params)
    assert first.keys() < now.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(now[path], value, err_msg=path)
    assert all("/lora/" in path for path in now.keys() - first.keys())
    assert {path for path in now if not model.is_frozen(path)} == {
        path for path in now if "/lora/" in path or path.startswith("head/")
    }
    with pytest.raises(ValueError, match="backbone.quantize is nf4, but int8 in .*w8a8"):
        begun_from(replace(config, backbone=replace(config.backbone, quantize="nf4")))


@pytest.mark.slow  # a training run
def test_a_run_with_lora_on_codes_trains_and_opens(w8a8, finished, tmp_path):
    from instructrec_jax.train import train

    out, *_ = w8a8
    config = tiny_run("classification", Path(finished.backbone.path), tmp_path, init_from=str(out))
    train(replace(config, lora=LoraConfig(rank=2), task=Run.open(out).config.task))
    tuned = Run.open(config.run_dir)
    first, now = flat(Run.open(out).model.params), flat(tuned.model.params)
    for path, value in first.items():
        if path.startswith("backbone/"):
            np.testing.assert_array_equal(now[path], value, err_msg=path)
    assert np.isfinite(probabilities(tuned)).all()
    with pytest.raises(ValueError, match="in no HuggingFace folder .the codes of a compressed run"):
        export(config.run_dir, tmp_path / "peft", format="peft")
    export(config.run_dir, tmp_path / "hf")
    again = Run.open(compressed_run(config.run_dir, tmp_path / "again", Quantization(), calibration=4))
    assert not again.config.lora.on
    np.testing.assert_allclose(probabilities(again), probabilities(tuned), atol=0.02)


@pytest.fixture(scope="module")
def w4(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    how = Quantization("int4", group=32, method="gptq", keep=["output.dense"])
    return compressed_run(finished.run_dir, tmp_path_factory.mktemp("compressed") / "w4", how, calibration=12)


@pytest.mark.parametrize("format", ["hf", "compressed-tensors"])
def test_an_export_holds_what_the_codes_stand_for(w4, tmp_path, format):
    """compressed-tensors: the same codes, of GPTQ; and layers that were kept stay dense."""
    run = Run.open(w4)
    assert run.config.backbone.quantize_keep == ["output.dense"]
    paths = flat(run.model.params)
    assert "backbone/layers/block0/mlp_out/kernel" in paths and "backbone/layers/block0/mlp_in/kernel/codes" in paths
    export(w4, tmp_path / format, format=format)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / format).eval()
    ids = run.task.context.tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = torch.softmax(network(**ids).logits, -1).numpy()
    np.testing.assert_allclose(probabilities(run), expected, atol=1e-4)
    note = (tmp_path / format / "README.md").read_text()
    if format == "hf":
        assert "written from what its int4 codes stand for" in note
        return
    assert "The codes are those of the run" in note
    stored = load_file(tmp_path / format / "model.safetensors")
    name = "bert.encoder.layer.1.intermediate.dense"
    kernel = run.model.network.backbone.layers.block0.mlp_in.kernel
    np.testing.assert_array_equal(stored[f"{name}.weight_scale"], np.asarray(kernel.scales[1]).T)
    numbers = np.asarray(unpack("int4", kernel.codes[1], kernel.size)).T
    np.testing.assert_array_equal(stored[f"{name}.weight_packed"], packed(numbers))
    assert "bert.encoder.layer.1.output.dense.weight" in stored
    with pytest.raises(ValueError, match="should be one of W8A8, W4A16"):
        export(w4, tmp_path / "other", format=format, dtype="W2")


def test_codes_that_another_format_lacks_are_rounded_again(w4, w8a8, tmp_path):
    """W8A8 of codes in 4 bits says so; orbax keeps codes in every dtype."""
    export(w4, tmp_path / "w8", format="compressed-tensors", dtype="W8A8")
    note = (tmp_path / "w8" / "README.md").read_text()
    assert "rounded to the nearest value" in note and "written from what its int4 codes stand for" in note
    export(w8a8[0], tmp_path / "same", format="compressed-tensors")
    kernel = Run.open(w8a8[0]).model.network.backbone.layers.block0.mlp_in.kernel
    stored = load_file(tmp_path / "same" / "model.safetensors")
    np.testing.assert_array_equal(
        stored["bert.encoder.layer.0.intermediate.dense.weight"], np.asarray(kernel.codes[0]).T
    )
    export(w8a8[0], tmp_path / "orbax", format="orbax", dtype="bfloat16")
    shapes = read_json(tmp_path / "orbax" / "metadata.json", dict)["parameters"]
    kinds = {path.rpartition("/")[2]: shape[0] for path, shape in shapes.items()}
    assert (kinds["codes"], kinds["scales"]) == ("int8", "bfloat16")
    with pytest.raises(ValueError, match="trained without LoRA"):
        export(w8a8[0], tmp_path / "peft", format="peft")


@pytest.fixture(scope="module")
def writer(language_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = LanguageModelConfig(template="plain")
    return untrained_run(tmp_path_factory.mktemp("writer") / "run", task, language_models["llama"], max_length=64)


def test_a_language_model_without_data_is_compressed_and_generates(writer, tmp_path):
    found = compress(writer, tmp_path / "small", Quantization(activations="int8"))
    assert found.quality is None and found.speed.unit == "tokens/s" and not found.layers
    assert "not measured" in shown(found)
    small = LanguageModel(tmp_path / "small")
    assert len(small.generate(TEXTS, GenerationConfig(max_new_tokens=4), raw=True)) == 2
    logits = []
    for model in (LanguageModel(writer).run.model.network, small.run.model.network):
        tokens = np.arange(5, 25, dtype=np.int32).reshape(2, 10)
        ones, places = np.ones_like(tokens), np.arange(10, dtype=np.int32) * np.ones_like(tokens)
        logits.append(np.asarray(model.head(model.backbone, model.backbone(tokens, ones, places, 0 * tokens))))
    np.testing.assert_allclose(logits[1], logits[0], atol=0.05 * np.abs(logits[0]).max())


@pytest.mark.parametrize(
    ("how", "changes", "message"),
    [
        (dict(method="gptq"), {}, "gptq needs calibration texts, but data.train is empty"),
        (dict(), dict(limit=0.1), "--limit needs cases"),
        (dict(), dict(limit=5), "--limit is 5, but should be a share"),
        (dict(), dict(calibration=0), "--calibration is 0"),
        (dict(keep=["no_such_layer"]), {}, "--keep: 'no_such_layer' matches no linear layer"),
    ],
)
def test_what_cannot_be_done_is_named_and_leaves_nothing(writer, tmp_path, how, changes, message):
    with pytest.raises(ValueError, match=message):
        compress(writer, tmp_path / "small", Quantization(**how), **changes)
    assert not list(tmp_path.iterdir())


def test_the_command(finished, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(verb, "compress", lambda *args, **options: asked.append((args, options)))
    monkeypatch.setattr(verb, "shown", lambda found: "the table")
    out = tmp_path / "small"
    options = "--weights int4 --method gptq --group 32 --keep q_proj mlp --limit 0.5% --calibration 7 --step 3"
    verb.main([finished.run_dir, "--out", str(out), *options.split(), "--dense_embeddings", "--mesh.data", "1"])
    ((path, target, how), rest) = asked[0]
    assert (str(path), target) == (finished.run_dir, out)
    assert how == Quantization("int4", group=32, method="gptq", keep=("q_proj", "mlp"), embeddings=False)
    assert rest == dict(settings=["--mesh.data", "1"], step=3, calibration=7, limit=0.005)
    assert "the table" in capsys.readouterr().out


def test_keys_and_values_in_int8_are_a_setting_of_any_run(writer, w8a8):
    opened = LanguageModel(writer, ["--backbone.cache_dtype", "int8"])
    layers = opened.run.model.network.backbone.empty_cache(1, 8)["layers"]["block0"]
    assert {name: str(x.dtype) for name, x in layers.items()} == {
        "key": "int8",
        "value": "int8",
        "key_scale": "float32",
        "value_scale": "float32",
    }
    assert len(opened.generate(TEXTS, GenerationConfig(max_new_tokens=2), raw=True)) == 2
    with pytest.raises(ValueError, match="cache_dtype is int8, but this task's network has no cache"):
        _ = Run.open(w8a8[0], ["--backbone.cache_dtype", "int8"]).model


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="nf4 codes are no integers"):
        Quantization("nf4", activations="int8")
    with pytest.raises(ValueError, match="smoothquant serves activations in int8"):
        Quantization(method="smoothquant")
    with pytest.raises(ValueError, match="the group is 48"):
        Quantization(group=48)


def test_a_loss_above_the_limit_leaves_nothing(finished, tmp_path, monkeypatch):
    """And what a kill would leave while the quality is measured is no run directory."""
    seen = []

    def measured(dense: Any, compressed: Any, *rest: Any) -> Any:
        seen.append(is_run_dir(compressed.path))
        quality = room.Quality(None, "macro_f1", 0.5, 0.4, 0.2)  # type: ignore[arg-type]
        return room.Compressed(2, 1, (2, 1), quality, None, ())  # type: ignore[arg-type]

    monkeypatch.setattr(room, "measured", measured)
    with pytest.raises(
        ValueError, match="macro_f1 is 0.4000, but 0.5000 before: a loss of 20.00%, above --limit 5.00%"
    ):
        compress(finished.run_dir, tmp_path / "small", Quantization(), limit=0.05, calibration=4)
    assert seen == [False] and not list(tmp_path.iterdir())


def test_a_compressed_run_is_not_compressed_again(w8a8, tmp_path):
    with pytest.raises(ValueError, match="compressed already"):
        compress(w8a8[0], tmp_path / "again", Quantization())
    with pytest.raises(ValueError, match="exists already"):
        compress(w8a8[0], w8a8[0], Quantization())


def test_the_source_keeps_its_files_and_holds_no_compressed_run(writer, tmp_path):
    (tmp_path / "link").symlink_to(writer)
    before = files(writer)
    for out in (writer / "small", tmp_path / "link" / "deep" / "small"):
        with pytest.raises(ValueError, match="which is only read: choose a folder outside"):
            compress(writer, out, Quantization())
    assert files(writer) == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train.jsonl"),
        ([{"instruction": "a film", "output": "no such label"}], "train.jsonl.*'output'"),
        ([{"question": "a film", "context": "a book", "answer": "film"}], "train.jsonl"),
    ],
)
def test_calibration_data_that_the_task_cannot_read_are_named(finished, tmp_path, rows, message):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--data.train", str(tmp_path / "train.jsonl")]
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        compress(finished.run_dir, tmp_path / "small", Quantization(method="gptq", weights="int4"), settings=settings)
    assert [path.name for path in tmp_path.iterdir() if "small" in path.name] == []


def test_a_stream_has_no_calibration_examples(finished, tmp_path):
    stream = json.dumps([{"path": finished.data.train[0].path, "streaming": True}])
    with pytest.raises(ValueError, match="data.train is a stream"):
        compress(finished.run_dir, tmp_path / "small", Quantization(), settings=["--data.train", stream])


def test_what_a_kill_left_is_no_run_and_is_written_over(writer, tmp_path, monkeypatch):
    """A kill while the quality is measured: all is written but what makes it a run."""

    def killed(dense: Any, compressed: Any, *rest: Any) -> Any:
        shutil.copytree(compressed.path, tmp_path / "left")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(room, "measured", killed)
        compress(writer, tmp_path / "small", Quantization("nf4"))
    assert [path.name for path in tmp_path.iterdir()] == ["left"]
    assert (tmp_path / "left" / "checkpoints").is_dir() and not is_run_dir(tmp_path / "left")
    (tmp_path / "left").rename(tmp_path / ".small.partial")  # a kill that nothing catches
    (tmp_path / ".small.partial" / "config.yaml").write_text("of another run")
    compressed_run(writer, tmp_path / "small", Quantization())
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert Run.open(tmp_path / "small").config.backbone.quantize == "int8"


def test_a_full_disk_is_named_and_leaves_nothing(writer, tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = files(writer)
    monkeypatch.setattr("instructrec_jax.training.checkpoint._ArraysSave", full)
    with pytest.raises(OSError, match="small cannot be written: .*No space left.* free some space, or choose another"):
        compress(writer, tmp_path / "small", Quantization())
    assert not list(tmp_path.iterdir()) and files(writer) == before


def test_weights_that_are_no_numbers_are_named(writer, tmp_path, monkeypatch):
    run = Run.open(writer)
    run.model.params["backbone"]["layers"]["block0"]["mlp_in"]["kernel"] *= np.nan
    with pytest.raises(ValueError, match=r"the weights of layers.0.mlp.up_proj contain NaN"):
        room.quantized(run.model, run.mesh, [], Quantization())
    quality = room.Quality(None, "loss", 2.0, float("nan"), float("nan"))  # type: ignore[arg-type]
    found = room.Compressed(2, 1, (2, 1), quality, None, ())  # type: ignore[arg-type]
    monkeypatch.setattr(room, "measured", lambda *_: found)
    monkeypatch.setattr(room, "too_much", lambda *_: "too much")
    settings = ["--data.test", str(tmp_path / "no_file_is_read.jsonl")]
    with pytest.raises(ValueError, match="too much"):
        compress(writer, tmp_path / "small", Quantization(), limit=0.5, settings=settings)


def test_given_examples_come_with_the_run(finished, tmp_path):
    config = replace(language_run(Path(finished.backbone.path), tmp_path), run_dir=str(tmp_path / "first"))
    source = replace(config.data.train[0], path=str(tmp_path / "first" / "given" / "train.jsonl"))
    config = replace(config, data=replace(config.data, train=[source]))
    moved = room.compressed_config(config, tmp_path / "first", tmp_path / "second", Quantization(), [])
    assert moved.data.train[0].path == str(tmp_path / "second" / "given" / "train.jsonl")
