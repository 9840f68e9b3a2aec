"""The audit of a folder of texts with planted mistakes, by the verb. (`instructrec_jax.audit`)"""

from pathlib import Path

import numpy as np
import pytest

from instructrec_jax.audit import main
from instructrec_jax.data.example import Example
from instructrec_jax.files import read_json, read_jsonl, write_jsonl, write_text
from instructrec_jax.labeling.audit import planted_labels
from instructrec_jax.runs.config import load
from instructrec_jax.runs.data import RunData

TOPICS = {
    "card": "my card was lost stolen blocked frozen swallowed".split(),
    "money": "a transfer payment refund salary is late".split(),
    "app": "the phone screen login update crashes again".split(),
}


def texts(count: int, seed: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        topic = str(rng.choice(list(TOPICS)))
        words = [*rng.choice(TOPICS[topic], 4), *rng.choice("please help me today with this matter".split(), 3)]
        made.append({"instruction": f"{' '.join(words)} {seed}x{number}", "output": topic, "id": f"{seed}-{number}"})
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of 120 texts, 3 have wrong labels, one is a duplicate, two contradict each other and one is in the test."""
    train, test = texts(114, 0), texts(20, 1)
    names = list(TOPICS)
    for row in train[:3]:
        row["output"] = names[(names.index(str(row["output"])) + 1) % 3]
    train += [train[10] | {"id": "again"}, test[0] | {"id": "seen"}]
    train += [{"instruction": "the same words", "output": name, "id": name} for name in names[:2]]
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "test.jsonl", test)
    return tmp_path


def test_what_is_wrong_is_found_and_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "audited"
    found = main([str(folder / "train.jsonl"), "--data.test", str(folder / "test.jsonl"), "--out", str(out)])
    rows = read_jsonl(out / "findings.jsonl")
    by_kind = {kind: {row["id"] for row in rows if row["kind"] == kind} for kind in {row["kind"] for row in rows}}
    assert {"0-0", "0-1", "0-2"} <= by_kind["label"] and len(by_kind["label"]) <= 5
    assert by_kind["duplicate"] == {"again"} and by_kind["leak"] == {"seen"}
    assert by_kind["contradiction"] == {"card", "money"}
    clean = {row["id"] for row in read_jsonl(out / "clean.jsonl")}
    assert not clean & {row["id"] for row in rows if row["dropped"]} and len(clean) == len(found.examples) >= 110
    summary = read_json(out / "audit.json", dict[str, object])
    assert summary["examples"] == {"train": 118, "test": 20} and summary["clean"] == len(clean)
    assert "report.html" in (printed := capsys.readouterr().out) and "rather" in printed


def test_the_clean_file_is_data_as_it_is(folder: Path) -> None:
    out = folder / "audited"
    found = main([str(folder / "train.jsonl"), "--out", str(out)])
    settings = {"task": {"type": "classification"}, "data.train": [str(out / "clean.jsonl")]}
    read = list(RunData(load(settings)).examples("train"))
    assert read == found.examples and isinstance(read[0], Example)


def test_planted_labels_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = main([str(folder / "train.jsonl"), "--plant", "0.05", "--seed", "3", "--similarity", "1"])
    assert found.labels is not None and found.labels.planted is not None
    planted = found.labels.planted
    assert planted.seed == 3 and planted.flipped == 6 and planted.recall >= 0.8
    assert f"recall {planted.recall:.3f}" in capsys.readouterr().out
    assert len(found.of("label")) <= 8  # of the labels as they are


def test_settings_name_the_data(folder: Path) -> None:
    sources = "\n".join(f"  {split}: [{folder / split}.jsonl]" for split in ("train", "test"))
    write_text(folder / "my.yaml", f"task: {{type: classification}}\ndata:\n{sources}\n")
    assert main([str(folder / "my.yaml"), "--similarity", "1"]).sizes == {"train": 118, "test": 20}


def test_other_tasks_are_audited_without_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"name {name}", "output": name.upper()} for name in ("a", "b", "a")]
    write_jsonl(folder / "asked.jsonl", rows)
    found = main([str(folder / "asked.jsonl"), "--task.type", "language_model", "--similarity", "1"])
    assert [f.kind for f in found.findings] == ["duplicate"] and found.labels is None
    assert "task.type classification only" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--plant flips labels, but all examples have the same one"):
        planted_labels(np.zeros(9, np.int64), 1, 0.2, 0)
    with pytest.raises(ValueError, match="--plant should be a share of the labels below .5.*nan"):
        planted_labels(np.zeros(9, np.int64), 2, float("nan"), 0)
    with pytest.raises(ValueError, match="--plant flips labels of task.type classification, not of language_model"):
        main([str(folder / "asked.jsonl"), "--task.type", "language_model", "--similarity", "1", "--plant", ".1"])


def test_bad_input_is_named(folder: Path) -> None:
    train = str(folder / "train.jsonl")
    with pytest.raises(ValueError, match="exists already: choose another --out"):
        main([train, "--out", str(folder)])
    with pytest.raises(ValueError, match="--features vectors needs a backbone"):
        main([train, "--features", "vectors", "--similarity", "1"])
    with pytest.raises(ValueError, match="--plant should be a share"):
        main([train, "--plant", "0.7", "--similarity", "1"])
    source = f"  train: [{{path: {train}, fields: {{output: null, ignore: [output]}}}}]"
    write_text(folder / "my.yaml", f"task: {{type: classification, labels: [card, app]}}\ndata:\n{source}\n")
    with pytest.raises(ValueError, match=r"train.jsonl.*1.*has no label"):
        main([str(folder / "my.yaml"), "--similarity", "1"])


def test_planted_labels_differ_from_the_given_ones() -> None:
    labels = np.arange(100) % 4
    given, flipped = planted_labels(labels, 4, 0.1, 0)
    assert flipped.sum() == 10 and np.array_equal(given != labels, flipped) and given.max() < 4
