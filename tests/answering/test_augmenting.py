"""The file of the verb augment: what is written, what is left out, and why."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import task_config

from instructrec_jax.answering import augmenting as module
from instructrec_jax.answering.augmenting import FAR, LOST, NEAR, OTHER, agrees, augment_file, similar
from instructrec_jax.answering.rewriting import Source
from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.hold_out import HoldOutConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.tasks import ClassificationConfig, TokenClassificationConfig

ROWS = [
    {"instruction": "an old book about the sea", "output": "war", "id": "a"},
    {"instruction": "the bright film of 1999 was new", "output": "love", "id": "b"},
    {"instruction": "a dull thing that nobody likes", "output": "held", "id": "c"},
]


def data_of(
    folder: Path, augment: AugmentConfig | None = None, rows: Sequence[dict[str, Any]] = ROWS, **changes: Any
) -> RunData:
    write_jsonl(folder / "train.jsonl", rows)
    source = SourceConfig(str(folder / "train.jsonl"), augment=augment or AugmentConfig(), **changes.pop("source", {}))
    task = changes.pop("task", ClassificationConfig(labels=["war", "love", "held"]))
    return RunData(Config(task=task, data=DataConfig(train=[source], store="memory", **changes)))


def saying(*texts: str) -> Any:
    """A rewriter that says the same whatever it gets."""
    return lambda sources: list(texts)[: len(sources)]


def test_the_copies_are_those_of_training(tmp_path: Path) -> None:
    data = data_of(tmp_path, AugmentConfig(swap=0.5, typos=0.3, copies=2))
    report = augment_file(data, {}, [], tmp_path / "out.jsonl", originals=True)
    written = [Example.from_record(row) for row in read_jsonl(tmp_path / "out.jsonl")]
    (source,) = data.with_copies(data.examples("train")).sources
    every = [source[n] for n in range(9)]
    assert [e for e in written if not e.origin] == [every[0], every[3], every[6]]
    copies = [e for e in written if e.origin]
    assert len(copies) == report.copies and all(copy in every for copy in copies)
    assert {e.origin["made_from"] for e in copies} <= set("abc") and {e.id for e in copies} <= set("abc")
    assert report.copies + sum(report.dropped.values()) == 6
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("<article>") == report.copies and "3 examples, 6 copies made" in page
    again = data_of(tmp_path, rows=read_jsonl(tmp_path / "out.jsonl"))
    assert len(again.examples("train")) == len(written)  # it can be trained on


def test_only_copies_and_no_held_out_examples(tmp_path: Path) -> None:
    held = HoldOutConfig(labels=["held"])
    data = data_of(tmp_path, AugmentConfig(swap=1.0, copies=1), hold_out=held)
    augment_file(data, {}, [], tmp_path / "out.jsonl", originals=False)
    assert [row["origin"]["made_from"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["a", "b"]  # type: ignore[index]


def test_rewritten_copies_and_what_is_lost_in_them(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    texts = ("an old book about the sea", "a bright film was new", "")
    with pytest.raises(ValueError, match="no copy is left"):
        augment_file(data, {"paraphrase": (saying(*texts), 1)}, [], tmp_path / "none.jsonl", originals=True)
    assert not (tmp_path / "none.jsonl").exists()
    texts = ("a book on the sea", "in 1999 that film was bright", "nobody likes it")
    report = augment_file(data, {"paraphrase": (saying(*texts), 2)}, [], tmp_path / "out.jsonl", originals=True)
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["instruction"] for row in rows[::2]] == [row["instruction"] for row in ROWS]
    assert tuple(row["instruction"] for row in rows[1::2]) == texts
    assert rows[1]["origin"] == {"made_from": "a", "augmented_by": "paraphrase"}
    assert report.dropped == {"the same as another copy": 3} and report.methods == {"paraphrase": 3}


@pytest.mark.parametrize(
    ("old", "new", "output", "stays"),
    [
        ("it costs 30 euros", "it costs euros", "war", False),
        ("we met Ann there", "we met her there", "war", False),
        ("We met there", "there they met", "war", True),
        ("a book about war", "a book on peace", "war", False),
        ("a book about peace", "a book on peace", "war", True),
        ("Bob? (Ann), 3.", "Bob, Ann: 3", "war", True),
    ],
)
def test_numbers_names_and_quoted_targets_have_to_stay(
    old: str, new: str, output: str, stays: bool, tmp_path: Path
) -> None:
    rows = [{"instruction": old, "output": output}, {"instruction": "one more", "output": "love"}]
    said = {"paraphrase": (saying(new, "one other"), 1)}
    report = augment_file(data_of(tmp_path, rows=rows), said, [], tmp_path / "out.jsonl", originals=False)
    assert report.dropped == ({} if stays else {LOST: 1})


def test_rewriters_are_told_what_stays(tmp_path: Path) -> None:
    asked: list[Source] = []

    def rewrite(sources: Sequence[Source]) -> list[str]:
        asked.extend(sources)
        return [f"{source.text} x" for source in sources]

    augment_file(data_of(tmp_path), {"mask_fill": (rewrite, 2)}, [], tmp_path / "out.jsonl", originals=True)
    assert asked[0].quoted == ("war",) and asked[0].words == {"war", "love", "held"}
    assert len({source.key for source in asked}) == 6
    tags = [{"instruction": "tag", "input": "old york is big", "output": ["B-P", "I-P", "O", "O"]}]
    tagging = data_of(tmp_path, rows=tags, task=TokenClassificationConfig(labels=["O", "B-P", "I-P"]))
    asked.clear()

    def last(sources: Sequence[Source]) -> list[str]:
        asked.extend(sources)
        return ["old york is bad"]

    augment_file(tagging, {"mask_fill": (last, 1)}, [], tmp_path / "tags.jsonl", originals=False)
    assert asked[0].fixed == {0, 1} and asked[0].quoted == ()
    (row,) = read_jsonl(tmp_path / "tags.jsonl")
    assert (row["input"], row["output"]) == ("old york is bad", ["B-P", "I-P", "O", "O"])


def test_what_cannot_be(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="no method is set"):
        augment_file(data_of(tmp_path), {}, [], out, originals=True)
    translating = data_of(tmp_path, task=task_config("translation", tmp_path))
    with pytest.raises(ValueError, match="--back_translation: the task cannot take back_translation"):
        augment_file(translating, {"back_translation": (saying("x"), 1)}, [], out, originals=True)
    stream = data_of(tmp_path, AugmentConfig(swap=0.5), source={"streaming": True})
    with pytest.raises(ValueError, match="augment needs sources of known size"):
        augment_file(stream, {}, [], out, originals=True)


# ---------------------------------------------------------------- filters


def pair(old: str, new: str, output: Any = "war") -> tuple[Example, Example]:
    return Example(instruction=old, output=output), Example(instruction=new, output=output)


def test_similar_copies_are_those_within_the_band(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = {"old": 0.0, "near": 0.1, "right": 0.5, "far": 1.5}
    run = SimpleNamespace(encode=lambda texts: np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts]) * 3)
    monkeypatch.setattr(module.Run, "open", lambda *_: run)
    monkeypatch.setattr(module, "settings_of", lambda folder: None)
    keep = similar(np.cos(1.0), np.cos(0.2), "folder")
    assert keep([pair("old", name) for name in ("near", "right", "far")]) == [NEAR, "", FAR]
    for low, high in ((0.9, 0.5), (0.5, 0.5), (-2.0, 0.5), (0.5, 1.1), (float("nan"), 0.5)):
        with pytest.raises(ValueError, match=f"--similar {low} {high}: give two cosines"):
            similar(low, high, "folder")


def test_the_teacher_has_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = ["war", "love", ["b", "a"], ["a"]]
    answers = [SimpleNamespace(to_record=lambda each=each: {"prediction": each}) for each in said]
    task = SimpleNamespace(label_names=["war", "love"])
    run = SimpleNamespace(kind="classification", config=SimpleNamespace(task=task), predict=lambda examples: answers)
    monkeypatch.setattr(module.Run, "open", lambda *_: run)
    pairs = [pair("x", "y", target) for target in ("war", "war", ("a", "b"), ("a", "b"))]
    assert agrees(Path("run"))(pairs) == ["", OTHER, "", OTHER]
    task.label_names = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="--teacher run has the task classification, but should predict labels"):
        agrees(Path("run"))


def test_few_pairs_of_many_are_kept(tmp_path: Path) -> None:
    rows = [{"instruction": f"word{'s' * (n % 7)} number {n}", "output": "war"} for n in range(500)]
    data = data_of(tmp_path, rows=rows)
    more = {"paraphrase": (lambda sources: [f"new {source.text}" for source in sources], 1)}
    assert augment_file(data, more, [], tmp_path / "out.jsonl", originals=False).copies == 500
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 20 and "number 0<" in page and "number 496<" in page


def test_filters_see_what_earlier_ones_left(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def keep(reason: str, *dropped: str) -> Any:
        def inner(pairs: Sequence[tuple[Example, Example]]) -> list[str]:
            seen.append([copy.instruction for _, copy in pairs])
            return [reason if copy.instruction in dropped else "" for _, copy in pairs]

        return inner

    said = {"paraphrase": (saying("one", "1999 two", "three"), 1)}
    filters = [keep("first", "one"), keep("second", "three")]
    report = augment_file(data_of(tmp_path), said, filters, tmp_path / "out.jsonl", originals=False)
    assert seen == [["one", "1999 two", "three"], ["1999 two", "three"]]
    assert report.dropped == {"first": 1, "second": 1} and report.copies == 1
    assert "3 examples, 3 copies made, 1 written\n       1 left out: first" in str(report)
