"""Scores of an image tokenizer beside brute force, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_cases import drawn
from tiny_pictures import png

from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import picture
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import load_model, open_task
from instructrec_jax.tasks import ClassificationConfig, ImageTokenizationConfig, LanguageModelConfig
from instructrec_jax.tasks.generation.image_tokenization import mosaic, psnr


def config_of(task: Any) -> Config:
    return Config(task=task, data=DataConfig(max_length=8))


def test_psnr_and_mosaic_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (4, 6, 3)).astype(float) for _ in range(2))
    error = np.mean([(a - b) ** 2 for a, b in zip(one.ravel(), other.ravel(), strict=True)])
    assert psnr(one, other) == pytest.approx(20 * np.log10(255 / np.sqrt(error)))
    nearly = one.copy()
    nearly[0, 0, 0] += 1 if one[0, 0, 0] < 255 else -1
    assert psnr(one, one) == psnr(one, nearly) < np.inf
    tiles = mosaic(one, 2)
    for row in range(0, 4, 2):
        for column in range(0, 6, 2):
            part = one[row : row + 2, column : column + 2].mean((0, 1))
            assert np.allclose(tiles[row : row + 2, column : column + 2], part)


def test_scores_are_of_the_pixels_that_codes_stand_for(drawing: dict[str, Path]) -> None:
    config = config_of(ImageTokenizationConfig())
    task: Any = open_task(config, drawing["fsq"])
    mesh = make_mesh(config.mesh)
    model = load_model(config, task, drawing["fsq"], mesh)
    predict = predictor(task, model.graphdef, mesh, (8,))(model.params)
    encoded = task.encode([drawn(Example(instruction=""), n, "image_tokenization") for n in range(5)])
    found = task.score(predict, encoded)
    network = model.network.backbone
    pixels = np.stack([task.read(e.example.images[0]) for e in encoded])
    codes = np.asarray(network.encode(pixels))
    values = [(np.clip(np.rint((x * 0.5 + 0.5) * 255), 0, 255)) for x in (np.asarray(network.decode(codes)), pixels)]
    expected = [psnr(one, other) for one, other in zip(*values, strict=True)]
    assert found.cases["PSNR"] == pytest.approx(expected, abs=0.05)  # a value may be rounded to its neighbor
    assert found.metrics["PSNR"] == pytest.approx(np.mean(expected), abs=0.05)
    assert [record["prediction"] for record in found.predictions] == codes.tolist()
    assert found.metrics["codes_used"] == len(np.unique(codes)) / 16
    shown = task.showcase(predict, encoded)
    assert len(shown) == 5 and all(each["answers"][0]["picture"].startswith("data:image/png") for each in shown)
    assert task.baselines([], encoded)["mean color of each patch"].metrics["PSNR"] > found.metrics["PSNR"]


def test_what_is_no_single_image_is_named(drawing: dict[str, Path]) -> None:
    task: Any = open_task(config_of(ImageTokenizationConfig()), drawing["fsq"])
    good = drawn(Example(instruction=""), 0, "image_tokenization")
    two = replace(good, images=(*good.images, picture(png(1))))
    for example, said in (
        (two, "it has 2 images, but one is drawn"),
        (Example(instruction=""), "it has no picture"),
        (replace(good, instruction="a cat"), "it has the words 'a cat'"),
        (replace(good, images=(picture(b"no file"),)), "example 1"),
    ):
        with pytest.raises(ValueError, match=said):
            task.encode([good, example])


def test_networks_of_other_kinds_are_refused(
    drawing: dict[str, Path], image_networks: dict[str, Path], language_models: dict[str, Path]
) -> None:
    for task, folder, said in (
        (ImageTokenizationConfig(), image_networks["vit"], "needs an image tokenizer"),
        (ImageTokenizationConfig(), language_models["llama"], "needs an image tokenizer"),
        (ClassificationConfig(labels=["a", "b"]), drawing["fsq"], "needs a network that reads images"),
        (LanguageModelConfig(), drawing["fsq"], "holds a network of images"),
    ):
        with pytest.raises(ValueError, match=said):
            open_task(config_of(task), folder)
