"""Runs that draw, from two trainings to pictures in files."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from drawing_runs import a_run
from PIL import Image
from tiny_runs import changed, final_parameters, rows

from instructrec_jax import evaluate, generate, predict, train
from instructrec_jax.answering.drawing import Drawer
from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import ImageTokenizationConfig, TextToImageConfig


@pytest.fixture(scope="module")
def tuned(drawing: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A text_to_image run whose image tokenizer was trained and exported before, and is gone."""
    folder = tmp_path_factory.mktemp("drawing")
    fields = FieldsConfig(output=None, ignore=["caption"])
    first = changed(a_run(folder, drawing["fsq"], ImageTokenizationConfig(), fields, 8), data__test=[])
    train.train(first)
    losses = [row["loss"] for row in rows(first.run_dir) if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    export(first.run_dir, folder / "codes")
    network = folder / "network"
    shutil.copytree(drawing["draw llama"], network, ignore=shutil.ignore_patterns("image_tokenizer"))
    task = TextToImageConfig(tokenizer=str(folder / "codes"), blank_prompts=0.3)
    second = a_run(folder, network, task, FieldsConfig(instruction="caption", output=None), 96)
    train.train(second)
    shutil.move(folder / "codes", folder / "moved")
    return second


def test_a_prompt_becomes_a_picture_in_a_file(tuned: Config, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    generate.main([tuned.run_dir, "--task", "image", "--prompt", "a good film", "--out", str(out)])
    drawer = Drawer(tuned.run_dir)
    (values,) = drawer.draw(["a good film"])
    assert np.array_equal(np.asarray(Image.open(out)), values) and values.shape == (16, 16, 3)
    same = drawer.draw(["a good film"] * 5)
    assert np.array_equal(same[0], values)  # the run's own settings and seed
    assert any(not np.array_equal(each, values) for each in same)  # each with its own draws
    greedy = drawer.draw(["a good film"] * 2, GenerationConfig(guidance_scale=5.0))
    assert np.array_equal(*greedy)
    grid = tmp_path / "b.jpg"
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a film"}, {"prompt": "old war"}])
    asked = [tuned.run_dir, "--task", "image", "--input", str(tmp_path / "in.jsonl"), "--samples", "2"]
    generate.main([*asked, "--out", str(grid), "--temperature", "0.5", "--guidance_scale", "1", "--seed", "3"])
    assert Image.open(grid).size == (34, 34) and Image.open(grid).format == "JPEG"


def test_predictions_are_the_pictures_of_an_evaluation(tuned: Config, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"caption": "a good film"}])
    predict.main([tuned.run_dir, "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert row["prediction"].startswith("data:image/png;base64,") and row["log_probability"] < 0
    report = (Path(tuned.run_dir) / "report.html").read_text()
    assert report.count('<img src="data:image/png;base64,') == 24  # given and drawn, of all twelve


def test_a_run_draws_without_its_judge(tuned: Config, tmp_path: Path) -> None:
    """Which scores evaluations alone; training says before its first step that it is not there."""
    gone = ["--task.judge", "./gone"]
    assert len(Drawer(tuned.run_dir, gone).draw(["a good film"])) == 1
    with pytest.raises(ValueError, match=r"\./gone is not a folder"):
        evaluate.main([tuned.run_dir, *gone, "--no_baselines", "--out", str(tmp_path / "out")])
    tokenizer = str(Path(tuned.run_dir).parent / "moved")
    config = changed(tuned, run_dir=str(tmp_path / "run"), task__tokenizer=tokenizer, task__judge="./gone")
    with pytest.raises(ValueError, match=r"\./gone is not a folder"):
        train.train(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_resumed_as_if_never_stopped(tuned: Config, tmp_path: Path) -> None:
    """Blank prompts come again as they were; the tokenizer is the run's own copy."""
    config = changed(tuned, run_dir=str(tmp_path / "run"), task__tokenizer=str(Path(tuned.run_dir).parent / "moved"))
    config = changed(config, data__test=[])  # drawing takes the time
    whole = changed(config, run_dir=str(tmp_path / "whole"))
    train.train(whole)
    shutil.copytree(whole.run_dir, config.run_dir)
    shutil.rmtree(Path(config.run_dir) / "checkpoints" / "4")
    train.train(config)
    assert rows(config.run_dir) == rows(whole.run_dir)
    ours, theirs = (final_parameters(each.run_dir, 4) for each in (config, whole))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.array_equal(one, other)


def test_an_export_draws_the_same(tuned: Config, tmp_path: Path) -> None:
    """With the tokenizer inside, as the network of a new run; its README says what opens the tokenizer's own."""
    export(tuned.run_dir, tmp_path / "hf")
    assert (tmp_path / "hf" / "image_tokenizer" / "model.safetensors").is_file()
    settings = ["--task.type", "text_to_image", "--task.blank_prompts", "0.3", "--data.max_length", "96"]
    again = Drawer(tmp_path / "hf", [*settings, "--backbone.dtype", "float32"])
    first, second = (
        each.draw(["old war"], GenerationConfig(guidance_scale=2.0)) for each in (Drawer(tuned.run_dir), again)
    )
    assert np.array_equal(first[0], second[0])
    assert "task.tokenizer" in (Path(tuned.run_dir).parent / "moved" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "a", "--out", "a.gif"], "--out is a.gif, but --task image writes a picture"),
        (["--prompt", "a"], "--out is missing"),
        (["--prompt", " ", "--out", "a.png"], "prompt 1 is empty"),
        (["--prompt", "old " * 300, "--out", "a.png"], "data.max_length"),
        (["--prompt", "a", "--out", "a.png", "--samples", "0"], "--samples is 0"),
        (["--prompt", "a", "--out", "a.png", "--max_new_tokens", "3"], "--max_new_tokens is for texts"),
        (["--prompt", "a", "--out", "a.png", "--stop", "b"], "--stop is for texts"),
        (["--prompt", "a", "--out", "a.png", "--guidance_scale", "0.5"], "guidance_scale must be at least 1"),
        (["--prompt", "a", "--out", "a.png", "--task.blank_prompts", "0", "--task.guidance_scale", "1",
          "--guidance_scale", "2"], "never learned without prompts"),
    ],
)  # fmt: skip
def test_bad_requests_are_named(
    arguments: list[str], said: str, tuned: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        generate.main([tuned.run_dir, "--task", "image", *arguments])
    assert not list(tmp_path.glob("*.png"))


def test_other_runs_draw_nothing(tuned: Config, finished: Config) -> None:
    with pytest.raises(ValueError, match="has the task classification, which draws no pictures"):
        Drawer(finished.run_dir)
    with pytest.raises(ValueError, match="text_to_image, which does not generate text"):
        LanguageModel(tuned.run_dir)
    with pytest.raises(ValueError, match="explain cannot explain the task TextToImage"):
        task = Run.open(tuned.run_dir).task
        task.objectives(None, None, None)  # type: ignore[arg-type]
    assert json.loads((Path(tuned.run_dir) / "examples.json").read_text())[0]["answers"][0]["text"] == "drawn"
