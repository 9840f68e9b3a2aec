"""What an audit reads: the splits in order, the texts that are compared, and what it refuses."""

from pathlib import Path

from instructrec_jax.files import write_jsonl
from instructrec_jax.labeling.findings import read_rows
from instructrec_jax.runs.config import load
from instructrec_jax.runs.data import RunData


def rows_of(folder: Path, **splits: list[dict[str, object]]):
    settings: dict[str, object] = {"task": {"type": "classification"}}
    for split, rows in splits.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
        settings[f"data.{split}"] = [str(folder / f"{split}.jsonl")]
    return read_rows(RunData(load(settings)))


def test_splits_come_in_order(tmp_path: Path) -> None:
    one, two = {"instruction": "one", "output": "a"}, {"instruction": "Two!", "output": "b"}
    rows = rows_of(tmp_path, test=[two], train=[one, two], validation=[one])
    assert rows.splits == ["train", "train", "validation", "test"] and rows.numbers == [0, 1, 0, 0]
    assert rows.keys == ["one", "two", "one", "two"] and rows.texts[1] == "Two!"
    assert [rows.answer(row) for row in range(4)] == ["a", "b", "a", "b"]


def test_a_shared_instruction_is_not_compared(tmp_path: Path) -> None:
    train = [
        {"instruction": "Is this good?", "input": text, "output": "yes no".split()[n]} for n, text in enumerate("ab")
    ]
    assert rows_of(tmp_path, train=train).keys == ["a", "b"]
    train[1]["instruction"] = "Is it good?"
    assert rows_of(tmp_path, train=train).keys == ["is this good a", "is it good b"]


def test_a_finding_is_json_without_empty_fields(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, train=[{"instruction": t, "output": t} for t in "ab"])
    record = rows.finding("duplicate", 1, True, 0, 1.0).to_record()
    assert record["other_label"] == "a" and record["similarity"] == 1.0 and "suggested" not in record
    assert str(tmp_path / "train.jsonl") in str(record["where"])
