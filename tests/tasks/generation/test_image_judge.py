"""Captions found for pictures: ranks by brute force, and vectors of transformers."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_pictures import png

from instructrec_jax.data.media.picture import picture
from instructrec_jax.tasks.generation.image_judge import CANDIDATES, ImageJudge, ranks_of

CAPTIONS = ["a good film", "the old book about war", "space"]


def test_ranks_are_those_among_a_hundred() -> None:
    rng = np.random.default_rng(0)
    count = 130
    captions = [f"c{n % 120}" for n in range(count)]  # some twice
    vectors, pictures = rng.normal(size=(120, 8)), rng.normal(size=(count, 8))
    pictures[0] = 0.0  # all similarities are equal
    found = ranks_of(pictures, captions, vectors, seed=3)
    for case in range(count):
        own = case % 120
        chosen = np.random.default_rng((3, case)).permutation(np.delete(np.arange(120), own))[: CANDIDATES - 1]
        assert len(set(chosen.tolist()) | {own}) == CANDIDATES
        scores = [float(vectors[n] @ pictures[case]) for n in chosen]
        mine = float(vectors[own] @ pictures[case])
        assert found.better[case] == sum(score > mine for score in scores)
    assert found.tied[0] == CANDIDATES - 1 and found.better[0] == 0
    few = ranks_of(pictures[:5], captions[:5], vectors[:5], seed=3)
    assert few.better.max() <= 4


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vectors_are_those_of_transformers(kind: str, pair_networks: dict[str, Path]) -> None:
    folder = pair_networks[f"{kind} pair"]
    judge = ImageJudge.of(str(folder))
    model: Any = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    pictures = [png(n) for n in range(3)]
    images = processor([Image.open(io.BytesIO(each)) for each in pictures], return_tensors="pt")
    padding: Any = dict(padding=True) if kind == "clip" else dict(padding="max_length", max_length=127)
    texts = tokenizer(CAPTIONS, return_tensors="pt", **padding)
    texts = {k: v for k, v in texts.items() if k == "input_ids" or (kind == "clip" and k == "attention_mask")}
    with torch.no_grad():
        out = model(pixel_values=images["pixel_values"], **texts)
    assert np.allclose(judge.captions(CAPTIONS), out.text_embeds.numpy(), atol=1e-5)
    assert np.allclose(judge.pictures([picture(each) for each in pictures]), out.image_embeds.numpy(), atol=1e-4)


def test_other_folders_are_named(drawing: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task.judge is .* holds a fsq_tokenizer"):
        ImageJudge.of(str(drawing["fsq"]))
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="task.judge is .* a run directory"):
        ImageJudge.of(str(tmp_path))


def test_captions_that_are_too_long_are_named(pair_networks: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"a caption has \d+ tokens, but .* reads 127"):
        ImageJudge.of(str(pair_networks["clip pair"])).captions(["good " * 200])
