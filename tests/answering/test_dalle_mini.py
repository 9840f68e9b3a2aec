"""A folder in dalle-mini's layout: drawn with as it is, tuned, resumed, exported and served."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dalle_in_torch import Reference
from drawing_runs import a_run
from helpers import examples
from PIL import Image
from safetensors.numpy import load_file
from task_cases import drawn
from tiny_pictures import png
from tiny_runs import changed, final_parameters, rows

from instructrec_jax import evaluate, generate, predict, train
from instructrec_jax.adapters.lora import is_lora
from instructrec_jax.answering.drawing import Drawer
from instructrec_jax.answering.exporting import export
from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.media.picture import picture
from instructrec_jax.data.packing import unpacked
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.files import read_json, read_jsonl, write_json, write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import load_model, open_task
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.stored import flat
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig
from instructrec_jax.tasks import TextToImageConfig
from instructrec_jax.training.step import batch_dropout_keys

PROMPTS = ["a good film", "old war", "the", "a film " * 9]


@pytest.fixture(scope="module")
def folder(drawing: dict[str, Path]) -> Path:
    return drawing["dallebart"]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_an_untuned_folder_draws_dalle_minis_codes(scale: float, folder: Path) -> None:
    """With guidance from the empty text, at its own length."""
    drawer = Drawer(folder)
    reference, tokens = Reference(folder), drawer.tokens(PROMPTS)

    def source(texts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        longest = max(map(len, texts))
        return np.stack([np.pad(each, (0, longest - len(each))) for each in texts]), np.stack(
            [np.arange(longest) < len(each) for each in texts]
        ).astype(np.int32)

    empty = np.array(drawer.task.tokenizer("")["input_ids"], np.int32)
    assert drawer.task.blank == tuple(empty) and 0 < len(empty) < len(tokens[0])
    expected = reference.greedy(source(tokens), 4, 13, source([empty] * len(tokens)), scale)
    settings = drawer.task.drawing(GenerationConfig(guidance_scale=scale, batch_size=3))
    written = drawer.run.predictor.write(tokens, settings)
    codes = [drawer.task.codes_in(each.text) for each in written]
    assert np.array_equal(codes, expected) and len({tuple(each) for each in codes}) > 1
    pictures = drawer.draw_tokens(tokens, settings)
    assert np.array_equal(pictures, drawer.task.codec.draw(codes)) and pictures[0].shape == (16, 16, 3)


def test_generate_draws_with_an_untuned_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    asked = [str(folder), "--task", "image", "--prompt", "a good film", "--backbone.dtype", "float32"]
    generate.main([*asked, "--out", str(out), "--guidance_scale", "5", "--samples", "2"])
    assert Image.open(out).size == (34, 16)
    with pytest.raises(ValueError, match="data.max_length is 128"):
        Drawer(folder).draw(["old " * 300])


def a_tuned(folder: Path, where: Path, rank: int = 0, **settings: Any) -> Config:
    task = TextToImageConfig(blank_prompts=0.3, **settings)
    return a_run(where, folder, task, FieldsConfig(instruction="caption", output=None), 48, rank)


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = a_tuned(folder, tmp_path_factory.mktemp("tuned"))
    train.train(config)
    return config


def test_tuning_learns_and_leaves_the_image_tokenizer_alone(folder: Path, tuned: Config, tmp_path: Path) -> None:
    losses = [row["loss"] for row in rows(tuned.run_dir) if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    export(tuned.run_dir, tmp_path / "hf")
    for kept in (Path(tuned.run_dir) / "backbone", tmp_path / "hf"):
        for file in (folder / "image_tokenizer").iterdir():
            assert (kept / "image_tokenizer" / file.name).read_bytes() == file.read_bytes()
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "hf"))
    assert {n: x.shape for n, x in before.items()} == {n: x.shape for n, x in after.items()}
    assert any(not np.array_equal(x, after[n]) for n, x in before.items())
    assert not (tmp_path / "hf" / "generation_config.json").exists()
    assert "draws with it" in (tmp_path / "hf" / "README.md").read_text()
    settings = ["--backbone.dtype", "float32"]
    first, second = (Drawer(each, settings).draw(PROMPTS) for each in (tuned.run_dir, tmp_path / "hf"))
    assert np.array_equal(first, second)


def test_evaluations_and_predictions(tuned: Config, tmp_path: Path) -> None:
    evaluate.main([tuned.run_dir, "--out", str(tmp_path / "out")])
    result = read_json(tmp_path / "out" / "evaluation.json", dict)
    assert "5-gram" in json.dumps(result)
    write_jsonl(tmp_path / "in.jsonl", [{"caption": "a good film"}, {"caption": "old war"}])
    predict.main([tuned.run_dir, "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    found = read_jsonl(tmp_path / "out.jsonl")
    assert all(each["prediction"].startswith("data:image/png;base64,") for each in found)


@pytest.mark.slow  # as in test_drawing.py, with another network
def test_resumed_as_if_never_stopped(tuned: Config, tmp_path: Path) -> None:
    config = changed(tuned, run_dir=str(tmp_path / "run"))
    shutil.copytree(tuned.run_dir, config.run_dir)
    shutil.rmtree(Path(config.run_dir) / "checkpoints" / "4")
    train.train(config)
    assert rows(config.run_dir) == rows(tuned.run_dir)
    ours, theirs = (final_parameters(each.run_dir, 4) for each in (config, tuned))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.array_equal(one, other)


def test_lora_trains_beside_frozen_tensors(folder: Path, tmp_path: Path) -> None:
    """Merged into an export, which the run's drawings are those of; PEFT has no such network."""
    config = changed(a_tuned(folder, tmp_path, rank=2), data__test=[])  # drawing takes the time
    train.train(config)
    run = Run.open(config.run_dir)
    trained = [path for path in flat(run.model.params) if is_lora(path)]
    assert len(trained) == 2 * (2 * 2 + 7 + 11) - 2 * 2 * 2
    with pytest.raises(ValueError, match="--format peft: other libraries do not have"):
        export(config.run_dir, tmp_path / "peft", format="peft")
    export(config.run_dir, tmp_path / "hf")
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "hf"))
    same = {name for name, x in before.items() if np.array_equal(x, after[name])}
    assert {"lm_head.kernel", "model.decoder.embed_tokens.embedding"} <= same
    assert not any("q_proj" in name or "Dense" in name for name in same)


def test_a_service_draws(folder: Path) -> None:
    from instructrec_jax.service.drawings import Drawing, Prompt

    service = open_service(ServeConfig(models=[ModelConfig(str(folder))], limits=LimitsConfig(drawings=2)))
    try:
        (model,) = service.models.values()
        drawing = model.answerers["draw"]
        assert isinstance(drawing, Drawing) and drawing.codes == 4
        drawing.compile()
        (found,) = drawing.answer([Prompt("a good film", 2)])
        assert not isinstance(found, Exception) and len(found.pictures) == 2
    finally:
        service.close()


@pytest.mark.parametrize("format", ["onnx", "stablehlo", "gguf", "compressed-tensors"])
def test_other_runtimes_are_refused(format: str, folder: Path, tuned: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dallebart|DalleBart"):
        export(tuned.run_dir, tmp_path / "run", format=format)
    with pytest.raises(ValueError, match="dallebart|DalleBart"):
        export(folder, tmp_path / "folder", format=format)


def edited(folder: Path, out: Path, **changes: Any) -> Path:
    shutil.copytree(folder, out)
    write_json(out / "config.json", read_json(out / "config.json", dict) | changes)
    return out


def test_blank_prompts_of_training_are_the_empty_text(folder: Path, tmp_path: Path) -> None:
    """At its own length: the losses of codes are those behind the empty text, and other prompts stay."""
    rates = {name: 0.0 for name in ("dropout", "attention_dropout", "activation_dropout")}
    silent = edited(folder, tmp_path / "a", **rates)
    config = Config(task=TextToImageConfig(blank_prompts=0.5), data=DataConfig(max_length=48))
    task: Any = open_task(config, silent)
    network = load_model(config, task, silent, make_mesh(config.mesh)).network
    made = task.encode([drawn(e, n) for n, e in enumerate(examples("text_to_image", 12))])

    def batch_of(encoded: Any) -> Any:
        texts = task.gather(encoded, np.random.default_rng(0))
        lengths, targets = lengths_of(texts.texts)
        return lay_out(texts, unpacked(lengths, 48, 1, 8))

    batch = batch_of(made)
    blanked = task.blanked(batch, batch_dropout_keys(jnp.uint32(3), batch))
    empty = np.array(task.blank, np.int32)
    is_blank = np.asarray(blanked.texts.segment_ids).sum(1) != batch.texts.segment_ids.sum(1)
    assert 2 < is_blank.sum() < 10
    order = np.argmax(batch.text_numbers >= 0, axis=1)
    numbers = batch.text_numbers[np.arange(len(batch.text_numbers)), order]
    known = {int(number) for number, blank in zip(numbers, is_blank, strict=True) if blank}
    expected = batch_of(
        [replace(e, text=replace(e.text, tokens=empty)) if n in known else e for n, e in enumerate(made)]
    )
    ours, theirs = (np.asarray(task.predict(network, each))[..., 0] for each in (blanked, expected))
    assert np.abs(ours).max() > 1 and np.abs(ours - theirs).max() < 1e-5


def test_prompts_are_normalized_where_the_network_was_trained_so(folder: Path, tmp_path: Path) -> None:
    plain, normal = Drawer(folder), Drawer(edited(folder, tmp_path / "a", normalize_text=True))
    assert np.array_equal(normal.tokens(["A  Good film!"])[0], plain.tokens([" a good film"])[0])
    with pytest.raises(ValueError, match="日"):
        normal.draw(["日本"])
    with pytest.raises(ValueError, match="'seven'.*the hashtag '#a'|seven: .*#a"):
        normal.task.encode([Example(instruction="#a", images=(picture(png(1)),), id="seven")])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--task.max_target_length", "3"], "max_target_length is 3, but an image has 4 codes"),
        (["--task.blank_prompts", "1"], "blank_prompts"),
        (["--task.type", "language_model"], "needs a network that writes no codes of images"),
        (["--task.type", "summarization"], "needs a network that writes no codes of images"),
        (["--data.max_length", "200"], "the backbone reads at most 128"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: list[str], said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said):
        Drawer(folder, settings)


def test_folders_that_do_not_fit_are_named(folder: Path, drawing: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("image_tokenizer"))
    with pytest.raises(ValueError, match="task.tokenizer is not set"):
        Drawer(bare)
    with pytest.raises(ValueError, match="makes 4 codes of an image, of 16, but the network writes 4 of up to 15"):
        Drawer(bare, ["--task.tokenizer", str(drawing["fsq"])])
    assert Drawer(bare, ["--task.tokenizer", str(drawing["vqgan"])]).task.codec.folder == drawing["vqgan"]


def test_a_language_model_learns_the_codes_of_a_vqgan(drawing: dict[str, Path], tmp_path: Path) -> None:
    """Frozen, as one of this package is."""
    network = tmp_path / "network"
    shutil.copytree(drawing["draw llama"], network, ignore=shutil.ignore_patterns("image_tokenizer"))
    task = TextToImageConfig(tokenizer=str(drawing["vqgan"]), blank_prompts=0.3)
    config = a_run(tmp_path, network, task, FieldsConfig(instruction="caption", output=None), 96)
    train.train(changed(config, data__test=[]))
    assert Drawer(config.run_dir).draw(["old war"])[0].shape == (16, 16, 3)


def test_a_vqgan_is_not_trained(drawing: dict[str, Path], tmp_path: Path) -> None:
    from instructrec_jax.tasks import ImageTokenizationConfig

    fields = FieldsConfig(output=None, ignore=["caption"])
    with pytest.raises(ValueError, match=r"of this package \(fsq_tokenizer\).*holds another one.*vqgan"):
        train.train(a_run(tmp_path, drawing["vqgan"], ImageTokenizationConfig(), fields, 8))
