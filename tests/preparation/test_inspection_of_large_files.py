"""`prepare inspect` on more rows than it holds: the same settings and splits from a sample, in constant memory."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.data import parquet_rows
from instructrec_jax.data.rows import open_rows
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.preparation.inspection import columns
from instructrec_jax.preparation.inspection.columns import RowStream, profile
from instructrec_jax.preparation.inspection.inspect import inspect
from instructrec_jax.preparation.inspection.splitting import SPLITS
from instructrec_jax.preparation.own_config import InspectConfig

Row = dict[str, object]
THINGS = "war space crime music love".split()


def look(path: Path, name: str) -> Path:
    return inspect(InspectConfig(files=[str(path)], out=str(path.with_name(f"{name}.yaml")), backbone="films")).settings


def rows_of(kind: str) -> Iterator[Row]:
    r = random.Random(0)
    for n in range(240):
        thing = r.choice(THINGS)
        text = f"a film about {thing} {n // 2}"
        yield {
            "labels": {"id": n, "text": text, "label": thing, "other": r.choice([None, "x", 3])},
            "several": {"text": text, "labels": sorted(r.sample(THINGS, 2)), "when": f"2020-01-{n % 28 + 1:02}"},
            "tags": {"sentence": text, "tags": f"O O O B-{thing} O"},
            "questions": {"question": text, "context": text, "answers": {"text": [thing] if n % 9 else []}},
            "numbers": {"text": text, "score": str(n / 7)},
        }[kind]


@pytest.mark.parametrize("kind", ["labels", "several", "tags", "questions", "numbers"])
def test_a_sample_gives_the_settings_and_splits_of_all_rows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, rows_of(kind))
    whole = look(path, "whole")
    monkeypatch.setattr(columns, "SAMPLE", 60)
    sampled = look(path, "sampled")
    for split in SPLITS:
        a, b = (settings.with_suffix(".data") / f"{split}.jsonl" for settings in (whole, sampled))
        assert a.read_bytes() == b.read_bytes() and a.stat().st_size
    names = ("type:", "fields:", "steps:", "batch_size:", "no_answer:", "labels:")
    for one, other in zip(
        *([line for line in s.read_text().splitlines() if any(n in line for n in names)] for s in (whole, sampled)),
        strict=True,
    ):
        assert one.replace("whole", "") == other.replace("sampled", "")
    if kind != "questions":  # what was not measured may be longer
        assert "truncate:" in sampled.read_text() and "truncate:" not in whole.read_text()


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SAMPLE", 50)
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    for path, count in ((small, 200), (large, 2_000)):
        write_jsonl(path, ({"text": f"{n} " + "x" * 6_000, "label": THINGS[n % 5]} for n in range(count)))
    look(small, "warm")
    peaks = []
    for path in (small, large):
        tracemalloc.start()
        look(path, f"{path.stem}-again")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert large.stat().st_size > 12e6
    assert peaks[1] - peaks[0] < 1.5e6  # bytes: 1,800 rows more, of 6,000 characters each


def test_the_sample_is_uniform_and_small_where_rows_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SAMPLE", 200)
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ({"n": n, "text": "x" * 100} for n in range(4_000)))
    found = profile(RowStream([str(path)]), seed=1)
    numbers = list(found.sample)
    assert len(numbers) == 200 and numbers == sorted(numbers) == [row["n"] for row in found.sample.values()]
    assert 70 <= sum(n < 2_000 for n in numbers) <= 130
    assert profile(RowStream([str(path)]), seed=2).sample != found.sample
    assert found.rows == found.columns["n"].filled_rows == 4_000 and found.columns["n"].high == 3_999
    monkeypatch.setattr(columns, "ROOM", 30_000)
    few = profile(RowStream([str(path)]), seed=1).sample
    assert 50 <= len(few) <= 120 and 0.2 < sum(n < 2_000 for n in few) / len(few) < 0.8


def test_parquet_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "BATCH", 7)
    path = tmp_path / "a.parquet"
    rows = [{"text": f"film {n}", "labels": ["a"] * (n % 3), "n": n} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20)
    opened = open_rows(str(path))
    assert [opened.row(n) for n in range(50)] == rows == [opened.row(n) for n in range(50)]
    assert opened.row(49) == rows[49] and opened.row(3) == rows[3] and opened.where(3).endswith("row 4")
    look(path, "my")
    assert sum(len(read_jsonl(tmp_path / "my.data" / f"{split}.jsonl")) for split in SPLITS) == 50


def test_a_rare_kind_of_cell_is_seen_outside_of_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SAMPLE", 20)
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"film {n}", "score": n / 7 if n != 399 else "none", "label": None} for n in range(400)]
    write_jsonl(path, rows)
    found = profile(RowStream([str(path)]))
    assert {name: column.kind for name, column in found.columns.items()} == {
        **{"text": "text", "score": "mixed", "label": "empty"}
    }
    with pytest.raises(ValueError, match="score.*mixed"):
        look(path, "my")
