"""scripts/picture_questions.py: files and networks, from a package like easy-vqa."""

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny_pictures import png

from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.files import read_jsonl

PATH = Path(__file__).parents[1] / "scripts" / "picture_questions.py"
spec = importlib.util.spec_from_file_location("picture_questions", PATH)
assert spec is not None and spec.loader is not None
questions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(questions)
TRUTH = [("red", "circle"), ("blue", "triangle"), ("blue", "rectangle")]


def asked(number: int) -> list[tuple[str, str, int]]:
    """The first picture is named by answers, the second by what is not denied, of the third only the color is known."""
    color, shape = TRUTH[number % 3]
    return [
        [("what color is the shape?", color, number), ("what shape is present?", shape, number)],
        [(f"is there not a {color} shape?", "no", number), (f"is a {shape} present?", "yes", number)],
        [("what is the color of the shape?", color, number), ("is no circle present?", "yes", number)],
    ][number % 3]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for split in ("train", "test"):
        (tmp_path / "easy_vqa" / "data" / split / "images").mkdir(parents=True)
        for number in range(24):
            picture = tmp_path / "easy_vqa" / "data" / split / "images" / f"{number}.png"
            picture.write_bytes(png(number, (64, 64)))
        every = [question for number in range(24) for question in asked(number)]
        (tmp_path / "easy_vqa" / "data" / split / "questions.json").write_text(json.dumps(every))
    found = importlib.machinery.ModuleSpec("easy_vqa", None, origin=str(tmp_path / "easy_vqa" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *args: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["picture_questions.py", *map(str, args)])
    questions.main()


def test_data_then_a_network_with_the_weights_of_the_trained_tower(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = package / "out"
    call(monkeypatch, "--out", out)
    train, validation = read_jsonl(out / "train.jsonl"), read_jsonl(out / "validation.jsonl")
    assert {row["image"] for row in validation} == {"train/0.png", "train/20.png"} and len(train) == 44
    assert not {row["image"] for row in train} & {row["image"] for row in validation}
    assert all((out / str(row["image"])).exists() for row in train)
    names = {row["image"]: row["output"] for row in read_jsonl(out / "named_train.jsonl")}
    assert names == {f"train/{n}.png": " ".join(TRUTH[n % 3]) for n in range(1, 24) if n % 3 < 2}
    said = capsys.readouterr().out
    assert "test, by the question alone" in said and "always" in said

    tower = load_backbone(out / "tower", random_init=True, images=True, rngs=nnx.Rngs(3))
    save_pretrained(package / "trained", tower.module, tower.config)
    call(monkeypatch, "--out", out, "--tower", package / "trained")
    own, whole = (load_file(folder / "model.safetensors") for folder in (package / "trained", out / "network"))
    kept = [name for name in own if not name.startswith("head.")]
    inside = {name: whole[f"vision_tower.vision_model.{name}"] for name in kept}
    assert len(kept) > 40 and all(np.array_equal(inside[name], own[name]) for name in kept)
    load_backbone(out / "network", images=True, rngs=nnx.Rngs(0))  # opens as it is


def test_the_tower_needs_the_questions_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "--out", tmp_path, "--tower", tmp_path / "none")
    assert "call the script without --tower first" in capsys.readouterr().err
