"""Smaller runs of pictures and sounds: measured, opened, served and exported; what stays impossible."""

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from live_service import live
from test_contrastive_runs import contrastive_run
from test_image_runs import COLORS, image_run, write_colors
from test_sound_runs import write_tones
from tiny_runs import compressed_run, untrained_run

from instructrec_jax import train
from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.compression.compress import compress, shown
from instructrec_jax.compression.measure import loss_batches
from instructrec_jax.compression.prune import prune
from instructrec_jax.compression.pruning import Pruning
from instructrec_jax.compression.quantization import Quantization
from instructrec_jax.compression.sparsify import sparsify
from instructrec_jax.compression.sparsity import Sparsity
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.stored import flat
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import ModelConfig, ServeConfig
from instructrec_jax.tasks import ClassificationConfig, QuestionAnsweringConfig, TranscriptionConfig

W8A8 = Quantization(activations="int8")


def sources(folder: Path, write: Any, **sizes: int) -> dict[str, Any]:
    return {f"data__{split}": [SourceConfig(path=str(write(folder, split, count)))] for split, count in sizes.items()}


def colors(folder: Path, split: str, count: int) -> Path:
    return write_colors(folder, split, count, 100 * count)


@pytest.fixture(scope="module")
def dense(image_networks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with a classifier, untrained, and pictures."""
    folder = tmp_path_factory.mktemp("vit")
    task = ClassificationConfig(labels=sorted(COLORS))
    data = sources(folder / "data", colors, train=6, test=6)
    return untrained_run(folder / "run", task, image_networks["vit"], 16, **data)


@pytest.fixture(scope="module")
def small(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("small") / "w8"
    return out, compress(dense, out, Quantization(method="gptq"), calibration=6)


def test_what_is_measured_is_of_the_pictures(small: Any, dense: Path) -> None:
    out, found = small
    assert found.speed.unit == "pictures/s" and found.speed.dense > 0
    assert found.after < 0.6 * found.before
    layers = {each["layer"]: each for each in found.layers}
    assert all(0 < each["error"] < 0.05 for each in layers.values() if not each["kept"])
    assert [name for name, each in layers.items() if each["kept"]] == ["embeddings.patch_embeddings.projection"]
    assert len(layers) == 2 * 6 + 1
    before, after = found.quality.training
    run = Run.open(out)
    source = Path(run.config.data.test[0].path)
    records = [row | {"image": str(source.parent / row["image"])} for row in read_jsonl(source)]
    for path, loss in ((dense, before), (out, after)):
        said = Run.open(path).predict([{"image": row["image"]} for row in records])
        logs = [np.log(each.probabilities[row["label"]]) for each, row in zip(said, records, strict=True)]
        assert loss == pytest.approx(-np.mean(logs), rel=1e-5)
    assert before != after and after == pytest.approx(before, rel=0.01)
    assert "pictures/s" in shown(found) and "accuracy" in shown(found)


def test_its_export_and_its_service_answer_as_the_run(small: Any) -> None:
    out, _ = small
    run = Run.open(out)
    file = Path(run.config.data.test[0].path).parent / "test" / "0.png"
    (expected,) = run.predict([{"image": str(file)}])
    export(out, out.parent / "hf")
    network = transformers.AutoModelForImageClassification.from_pretrained(out.parent / "hf").eval()
    assert run.task.context.pixels is not None
    pixels = run.task.context.pixels(next(iter(run.data.cases(run.task, "test"))).example.images[0])
    with torch.no_grad():
        logits = network(torch.tensor(pixels.transpose(2, 0, 1))[None]).logits[0]
    theirs = dict(zip(network.config.id2label.values(), torch.softmax(logits, -1).tolist(), strict=True))
    assert expected.probabilities == pytest.approx(theirs, abs=1e-5)
    uri = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    app = make_app(open_service(ServeConfig(models=[ModelConfig(path=str(out))])))
    with live(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        (answer,) = client.post("/classify", json={"input": {"image": uri}}).json()["data"]
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.slow
def test_fewer_layers_and_features_of_a_vit_open_in_transformers(dense: Path, tmp_path: Path) -> None:
    found = prune(dense, tmp_path / "small", Pruning(layers=1, width=16), calibration=6)
    assert found.compressed.speed.unit == "pictures/s" and found.choices[0].layers is not None
    run = Run.open(tmp_path / "small")
    export(tmp_path / "small", tmp_path / "hf")
    network = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert (network.config.num_hidden_layers, network.config.intermediate_size) == (1, 16)
    cases = list(run.data.cases(run.task, "test"))
    assert run.task.context.pixels is not None
    pixels = np.stack([run.task.context.pixels(each.example.images[0]) for each in cases])
    with torch.no_grad():
        logits = network(torch.tensor(pixels.transpose(0, 3, 1, 2))).logits
    np.testing.assert_allclose(np.stack(run.predictor([each.text for each in cases])), logits.numpy(), atol=1e-5)


@pytest.mark.slow  # a training run
def test_lora_is_trained_on_the_codes_of_a_vit(small: Any, dense: Path, image_networks: Any, tmp_path: Path) -> None:
    out, _ = small
    changes = dict(init_from=str(out), lora=LoraConfig(rank=2), steps=2, task=Run.open(out).config.task)
    config = image_run(image_networks["vit"], tmp_path, **changes)
    train.train(config)
    first, now = flat(Run.open(out).model.params), flat(Run.open(config.run_dir).model.params)
    for path, value in first.items():
        if path.startswith("backbone/"):
            np.testing.assert_array_equal(now[path], value, err_msg=path)
    assert any(np.any(value) for path, value in now.items() if path.endswith("/lora/b"))


def questions(folder: Path, split: str, count: int) -> Path:
    file = colors(folder, split, count)
    asked = [{"image": r["image"], "instruction": "the film", "output": r["label"]} for r in read_jsonl(file)]
    write_jsonl(file, asked)
    return file


@pytest.fixture(scope="module")
def seer(seeing: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA, untrained, and questions about pictures."""
    folder = tmp_path_factory.mktemp("llava")
    task = QuestionAnsweringConfig(template="plain", max_new_tokens=4)
    data = sources(folder / "data", questions, train=6, test=4)
    return untrained_run(folder / "run", task, seeing["llava"], 32, **data)


@pytest.mark.slow
def test_a_llava_answers_about_pictures_in_codes(seer: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    found = compress(seer, out, Quantization(activations="int8", method="smoothquant"), calibration=6)
    assert found.speed.unit == "tokens/s" and found.quality is not None
    unused = "vision_tower.encoder.layers.1."  # its hidden states are those after the layer before the last
    towers = {each["layer"]: each["error"] for each in found.layers if "vision_tower" in each["layer"]}
    assert all((error > 0) == (not name.startswith(unused)) for name, error in towers.items() if "patch" not in name)
    assert all(each["error"] > 0 for each in found.layers if "language_model" in each["layer"])
    run = Run.open(out)
    file = Path(run.config.data.test[0].path)
    measured = list(run.evaluate(file).predictions)
    pictures = [[file.parent / row["image"]] for row in read_jsonl(file)]
    how = GenerationConfig(max_new_tokens=4)
    written = LanguageModel(str(out)).generate(["the film"] * len(pictures), how, images=pictures)
    assert [row["prediction"] for row in measured] == [each.text.strip() for each in written]
    spread = Run.open(out, ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"])
    for one, other in zip(measured, spread.evaluate(file).predictions, strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["log_probability"] == pytest.approx(other["log_probability"], abs=2e-3)
    export(out, tmp_path / "hf")
    transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")


@pytest.mark.slow
def test_the_decoder_of_a_llava_has_fewer_layers_and_heads(seer: Path, tmp_path: Path) -> None:
    found = prune(seer, tmp_path / "small", Pruning(layers=1, heads=2), calibration=6)
    assert len(found.choices[0].layers or ()) == 1
    export(tmp_path / "small", tmp_path / "hf")
    config = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").config
    assert (config.text_config.num_hidden_layers, config.text_config.num_attention_heads) == (1, 2)
    assert config.vision_config.num_hidden_layers == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "paligemma", "gemma3"])
def test_a_decoder_that_reads_pictures_keeps_its_tokens(kind: str, seeing: Any, tmp_path: Path) -> None:
    """Other tokens are gone, those of pictures have new numbers, and hidden states are the same."""
    task = QuestionAnsweringConfig(template="plain", max_new_tokens=4)
    data = sources(tmp_path / "data", questions, train=6, test=4)
    run = untrained_run(tmp_path / "run", task, seeing[kind], 64, **data)
    found = prune(run, tmp_path / "small", Pruning(vocabulary=True), calibration=6)
    assert found.tokens[1] < found.tokens[0]
    assert found.choices[0].loss is not None and found.loss is not None
    before, after = Run.open(run), Run.open(tmp_path / "small")
    old, new = before.task.context.image_tokens, after.task.context.image_tokens
    assert old is not None and new is not None and new.token_id < old.token_id
    states = []
    for each in (before, after):
        (batch,) = loss_batches(each.task, each.config, each.mesh, list(each.data.cases(each.task, "test")))
        states.append(np.asarray(each.model.network.hidden(to_devices(batch, each.mesh))))
    np.testing.assert_allclose(*states, atol=1e-5)
    export(tmp_path / "small", tmp_path / "hf")
    network = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    assert network.config.image_token_id == new.token_id and network.config.text_config.vocab_size == found.tokens[1]


@pytest.mark.slow
def test_a_whisper_and_its_encoder(hearing: Path, tmp_path: Path) -> None:
    data = sources(tmp_path / "data", write_tones, train=4, test=3)
    run = untrained_run(tmp_path / "speech", TranscriptionConfig(max_new_tokens=4), hearing, 20, **data)
    found = compress(run, tmp_path / "speech-w8a8", W8A8, calibration=4)
    assert found.speed.unit == "tokens/s" and all(each["error"] > 0 for each in found.layers if not each["kept"])
    assert [each["layer"] for each in found.layers if each["kept"]] == ["encoder.conv1", "encoder.conv2"]
    task = ClassificationConfig(labels=["high", "low", "middle"])
    run = untrained_run(tmp_path / "heard", task, hearing, 20, **data)
    assert compress(run, tmp_path / "heard-w8a8", W8A8, calibration=4).speed.unit == "sounds/s"
    prune(run, tmp_path / "heard-short", Pruning(layers=1), calibration=4)
    export(tmp_path / "heard-short", tmp_path / "hf")
    network = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / "hf")
    assert network.config.encoder_layers == 1


@pytest.mark.slow
def test_a_pair_of_networks(pair_networks: Any, tmp_path: Path) -> None:
    base = contrastive_run(pair_networks["clip pair"], tmp_path)
    data = {"data__train": base.data.train, "data__test": base.data.test}
    run = untrained_run(tmp_path / "dense", base.task, pair_networks["clip pair"], 16, **data)
    found = compress(run, tmp_path / "small", Quantization("int4", group=32, method="gptq"), calibration=6)
    assert found.speed.unit == "pairs/s" and found.quality is not None
    assert all(each["error"] > 0 for each in found.layers if not each["kept"]), "both networks, and both projections"
    with pytest.raises(ValueError, match="prune the layers of one network, but clip is two side by side"):
        prune(run, tmp_path / "short", Pruning(layers=1), calibration=6)


@pytest.mark.slow
def test_zeros_in_both_networks_of_a_llava(seer: Path, tmp_path: Path) -> None:
    found = sparsify(seer, tmp_path / "small", Sparsity.of("50%", "wanda"), calibration=6)
    assert list(found.losses) == ["wanda", "magnitude", "sparsegpt"] and np.isfinite(list(found.losses.values())).all()
    params = flat(Run.open(tmp_path / "small").model.params)
    for part in ("backbone/reader/vision/layers/", "backbone/reader/projector/", "backbone/layers/"):
        kernels = [np.asarray(x) for path, x in params.items() if path.startswith(part) and path.endswith("kernel")]
        assert kernels and all(abs((kernel == 0).mean() - 0.5) < 0.02 for kernel in kernels)


@pytest.mark.slow
def test_the_pooling_of_a_siglip_can_be_kept(image_networks: Any, tmp_path: Path) -> None:
    """Its queries, keys and values are one tensor in transformers, no module."""
    task = ClassificationConfig(labels=sorted(COLORS))
    run = untrained_run(tmp_path / "dense", task, image_networks["siglip"], 16)
    for out, keep in (("all", ()), ("kept", ("in_proj",))):
        compressed_run(run, tmp_path / out, Quantization(keep=keep))
        codes = [path for path in flat(Run.open(tmp_path / out).model.params) if path.endswith("/codes")]
        assert ("backbone/pooler/qkv/kernel/codes" in codes) == (out == "all")
        assert "backbone/pooler/mlp/outer/kernel/codes" in codes
