"""Scores of patches against PyTorch: pixels set to the mean by hand, and gradients of the embedded patches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_cases
import torch
from explained_runs import run_of
from helpers import SUBJECTS, task_config
from task_cases import examples_of
from tiny_pictures import png
from tiny_runs import untrained_run
from transformers import ViTForImageClassification

from instructrec_jax.answering.exporting import write_hf
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Blanked, picture
from instructrec_jax.explanation.explain import Explainer
from instructrec_jax.explanation.patches import Grid
from instructrec_jax.explanation.words import without
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.generation import written_objectives
from instructrec_jax.tasks.objective import Choice

networks = task_cases.networks  # a fixture
TOLERANCE = 1e-4
STEPS = 16


def test_equal_to_pytorch(networks: Any, tmp_path: Path) -> None:
    run_dir = untrained_run(tmp_path / "run", task_config("classification", tmp_path), networks["vit", False])
    run = Run.open(run_dir)
    write_hf(tmp_path / "hf", run.model, run_dir, run.task, "float32")
    network = ViTForImageClassification.from_pretrained(tmp_path / "hf").double().eval()
    shown = picture(png(3))
    pixels = torch.tensor(run.task.context.pixels(shown)).permute(2, 0, 1)[None].double()
    embed, place = network.vit.embeddings.patch_embeddings, SUBJECTS.index("war")

    def number(pixels: torch.Tensor) -> torch.Tensor:
        return network(pixels).logits[:, place] - network(pixels).logits[:, 0]

    explainer = Explainer(run, ("integrated", "gradient", "occlusion"), most=STEPS)
    found = explainer.explain([Example(instruction="", output=None, images=(shown,))], Choice("war", SUBJECTS[0]))
    integrated, gradient, occlusion = (np.array(each.pictures[0].patches) for each in found)
    with torch.no_grad():
        whole = number(pixels).item()
        for row, column in np.ndindex(2, 2):
            blank = pixels.clone()
            blank[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
            assert occlusion[row, column] == pytest.approx(whole - number(blank).item(), abs=TOLERANCE)
        x, base = embed(pixels)[0], embed(torch.zeros_like(pixels))[0]
    assert all(each.value == pytest.approx(whole, abs=TOLERANCE) for each in found)

    def slopes(points: torch.Tensor) -> torch.Tensor:
        points = points.clone().requires_grad_()
        embed.forward = lambda pixels, **_: points
        return torch.autograd.grad(number(pixels.expand(len(points), -1, -1, -1)).sum(), points)[0]

    np.testing.assert_allclose(gradient.ravel(), (x * slopes(x[None])[0]).sum(-1).numpy(), atol=TOLERANCE)
    at, shares = (torch.tensor(each) for each in np.polynomial.legendre.leggauss(found[0].steps))
    path = base + ((at + 1) / 2)[:, None, None] * (x - base)
    expected = ((x - base) * (shares[:, None, None] / 2 * slopes(path)).sum(0)).sum(-1).numpy()
    np.testing.assert_allclose(integrated.ravel(), expected, atol=TOLERANCE)
    assert found[0].completeness_error <= 0.01 and found[0].converged


@pytest.mark.parametrize("name", ["contrastive", pytest.param("language_model, llava", marks=pytest.mark.slow)])
def test_words_and_patches_add_up(name: str, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integrated gradients of both together are what both baselines lose; occlusion is brute force."""
    monkeypatch.setattr(written_objectives, "EXPLAINED", 1)
    run = Run.open(run_of(name, networks, tmp_path))
    example = examples_of(name)[2]
    explainer = Explainer(run, ("integrated", "occlusion"), most=64)
    (asked,) = explainer.of_example(explainer.asker.example(example, "here"), Choice())
    integrated, occlusion = explainer.explanations([asked])
    assert len(integrated.pictures) == len(example.images) and bool(integrated.words) == (name != "contrastive")
    (plain,) = explainer.gradients.integrated([asked])
    assert sum(integrated.parts) == pytest.approx(plain.value - plain.baseline, abs=max(1e-4, 0.01 * abs(plain.value)))
    if name == "contrastive":  # no words, so the baseline is the picture without any patch
        blank = asked.grid.without(example, asked.grid.patches)
        (value,) = explainer.values([(asked.objective, run.task.encode([run.task.unanswered(blank)])[0])])
        assert value == pytest.approx(plain.baseline, abs=TOLERANCE)
    gone = replace(example, images=asked.grid.without(example, [(0, 1)]).images)
    (left,) = explainer.values([(asked.objective, run.task.encode([run.task.unanswered(gone)])[0])])
    assert occlusion.pictures[0].patches[0][1] == pytest.approx(occlusion.value - left, abs=TOLERANCE)


def test_a_picture_without_squares(networks: Any, tmp_path: Path) -> None:
    whole = picture(png(1))
    grid, example = Grid(2, 2, 2, 8), Example(instruction="an <image> of <image> war", images=(whole, picture(png(2))))
    left = grid.without(example, [(1, 3), (1, 0)])
    assert left.images[0] is whole and isinstance(left.images[1], Blanked)
    assert left.images[1].corners == ((0, 0), (8, 8)) and left.images[1] != example.images[1]
    pixels = left.images[1].blank(np.ones((17, 16, 3), np.float32))
    assert pixels[:8, 8:].all() and pixels[8:16, :8].all() and pixels[16].all()
    assert not pixels[:8, :8].any() and not pixels[8:16, 8:].any()
    assert grid.without(example, []) is example
    # the marks of pictures are no words, and stay where they are
    assert without(example, ["image"]).instruction == "an <image> of <image> war"
    assert without(example, ["OF"]).instruction == "an <image> <image> war"
