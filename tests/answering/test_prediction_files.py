"""Predictions for files: formats, interruptions, bad rows. The task counts letters, so no network is needed."""

import io
import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
import pytest
from letters import ASKED, TEXTS, Letters, asker, write_rows

from instructrec_jax.answering import output_formats, partial_files, prediction_files
from instructrec_jax.answering.prediction_files import Counts, predict_file, predict_stream
from instructrec_jax.data.batch import Text
from instructrec_jax.data.rows import open_rows
from instructrec_jax.files import read_jsonl, try_lock


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "WINDOW", 5)
    monkeypatch.setattr(output_formats, "CHUNK", 7)


def expected() -> list[dict[str, object]]:
    return [
        {
            "text": text,
            "label": "?",
            "note": f'"{number}"\n',
            "prediction": str(len(text)),
            "probabilities": {"a, b": 1 / len(text), "c": 0.5},
        }
        for number, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_has_the_rows_their_columns_and_predictions(ending: str, tmp_path: Path) -> None:
    out = tmp_path / f"out.{ending}"
    source = write_rows(tmp_path / "in.csv", TEXTS)
    if ending == "tsv":  # it has no quoting, so its cells are without line breaks
        source.write_text(source.read_text(encoding="utf-8").replace('\n"', '"'), encoding="utf-8")
    counts = predict_file(asker(), source, out, asked=ASKED)
    assert counts == Counts(23, 0)
    if ending == "jsonl":
        found = read_jsonl(out)
    elif ending == "parquet":
        found = pq.read_table(out).to_pylist()
    else:
        rows = open_rows(str(out))  # an output can be an input
        found = [rows.row(number) for number in range(len(rows))]
        for record in found:
            record["probabilities"] = json.loads(str(record["probabilities"]))
    if ending == "tsv":
        found = [record | {"note": f"{record['note']}\n"} for record in found]
    assert found == expected()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", out.name]


class Killed(BaseException):
    """Ends the process as SIGKILL would: nothing is cleaned up."""


@pytest.mark.parametrize("place", ["in a window", "before the journal", "after the journal", "in the last step"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_interrupted_call_resumes_to_the_same_bytes(
    place: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "in.csv", [*TEXTS[:7], "x", *TEXTS[7:], "z"])
    whole, out = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    assert predict_file(asker(), source, whole, asked=ASKED, skip=True) == Counts(23, 2)
    calls = 0

    def dies(texts: Sequence[Text], *_: object) -> list[np.ndarray]:
        nonlocal calls
        calls += 1
        if calls == 3 and place == "in a window":
            raise Killed
        return [np.zeros(1)] * len(texts)

    with monkeypatch.context() as patched:
        write = partial_files.write_json

        def write_then_die(path: Path, value: Any) -> Path:
            if place == "before the journal" and value["rows"] == 15:
                raise Killed
            written = write(path, value)
            if place == "after the journal" and value["rows"] == 15:
                raise Killed
            return written

        patched.setattr(partial_files, "write_json", write_then_die)
        if place == "in the last step":
            patched.setattr(partial_files.Partial, "finish", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            predict_file(asker(dies), source, out, asked=ASKED, skip=True)
    assert not out.exists()
    assert predict_file(asker(), source, out, asked=ASKED, skip=True) == Counts(23, 2)
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "out.rejected.jsonl").read_bytes() == (tmp_path / "whole.rejected.jsonl").read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"in.csv", out.name, whole.name, "out.rejected.jsonl", "whole.rejected.jsonl"}


def test_a_bad_row_stops_by_default_and_is_listed_on_request(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    rows = ['{"text": "ab"}', "{broken", '{"text": "abx"}', '{"text": 5.5}', '{"text": "z"}', '{"note": "a"}']
    source.write_text("\n".join([*rows, '{"text": "abc"}']) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"in\.jsonl.*2"):
        predict_file(asker(), source, tmp_path / "out.jsonl", asked=ASKED)
    assert predict_file(asker(), source, tmp_path / "kept.jsonl", asked=ASKED, skip=True) == Counts(2, 5)
    assert [row["text"] for row in read_jsonl(tmp_path / "kept.jsonl")] == ["ab", "abc"]
    rejected = read_jsonl(tmp_path / "kept.rejected.jsonl")
    assert sorted(str(row["where"]).rpartition(" ")[2] for row in rejected) == ["2", "3", "4", "5", "6"]
    assert all(row["reason"] for row in rejected)


def test_an_interruption_costs_a_window_and_a_smaller_one_where_text_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_files, "WRITING_WINDOW", 3)
    monkeypatch.setattr(Letters, "writes", True)
    source = write_rows(tmp_path / "in.csv", [*TEXTS[:10], "x"])
    with pytest.raises(ValueError, match="has an x"):
        predict_file(asker(), source, tmp_path / "out.jsonl", asked=ASKED)
    assert len(read_jsonl(tmp_path / "out.jsonl.partial")) == 9


def test_a_failure_in_the_first_window_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.csv", ["ab", "x"]), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="has an x"):
        predict_file(asker(), source, out, asked=ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    predict_file(asker(), write_rows(source, ["ab", "abc"]), out, asked=ASKED)  # the same command, a mended input


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.csv", TEXTS), tmp_path / "out.jsonl"
    for name in ("out.jsonl.partial", "out.rejected.jsonl"):
        (tmp_path / name).write_text("somebody's", encoding="utf-8")
        with pytest.raises(ValueError, match=name):
            predict_file(asker(), source, out, asked=ASKED)
        assert (tmp_path / name).read_text(encoding="utf-8") == "somebody's"
        (tmp_path / name).unlink()


def test_an_output_among_the_files_of_the_input_is_refused(tmp_path: Path) -> None:
    """It would be read by the next call."""
    source = write_rows(tmp_path / "in.csv", TEXTS)
    for several, name in ((tmp_path, "out.jsonl"), (tmp_path / "*.csv", "out.csv"), (tmp_path / "*.jsonl", "out.csv")):
        (tmp_path / "in.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
        with pytest.raises(ValueError, match="out.*--input"):
            predict_file(asker(), several, tmp_path / name, asked=ASKED, skip=True)
    predict_file(asker(), tmp_path / "*.csv", tmp_path / "out.jsonl", asked=ASKED)
    for link in ("soft.csv", "hard.csv"):
        (tmp_path / link).symlink_to(source) if link == "soft.csv" else (tmp_path / link).hardlink_to(source)
        with pytest.raises(ValueError, match="input"):
            predict_file(asker(), source, tmp_path / link, asked=ASKED)


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"in\.jsonl"):
        predict_file(asker(), tmp_path / "in.jsonl", tmp_path / "out.jsonl", asked=ASKED)


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", TEXTS)
    for out, match in [(source, "input"), (tmp_path / "out.txt", r"out\.txt"), (tmp_path, r"should end")]:
        with pytest.raises(ValueError, match=match):
            predict_file(asker(), source, out, asked=ASKED)
    with pytest.raises(OSError, match="in.csv"):
        predict_file(asker(), source, source / "out.csv", asked=ASKED)
    assert source.read_text(encoding="utf-8").startswith("text,label")


def test_a_column_that_predictions_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "prediction": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="prediction"):
        predict_file(asker(), tmp_path / "in.jsonl", tmp_path / "out.jsonl", asked=ASKED)


def test_what_another_call_began_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", [*TEXTS, "x"])
    with pytest.raises(ValueError, match="has an x"):
        predict_file(asker(), source, tmp_path / "out.jsonl", asked=ASKED)
    with pytest.raises(ValueError, match=r"out\.jsonl\.partial"):
        predict_file(asker(), source, tmp_path / "out.jsonl", asked={"run": "another"})
    write_rows(source, TEXTS)
    with pytest.raises(ValueError, match=r"out\.jsonl\.partial"):
        predict_file(asker(), source, tmp_path / "out.jsonl", asked=ASKED)


def test_a_journal_without_answers_begins_again(tmp_path: Path) -> None:
    """As left by a kill right after the output was moved into place, which was then removed."""
    source, out = write_rows(tmp_path / "in.csv", [*TEXTS, "x"]), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="has an x"):
        predict_file(asker(), source, out, asked=ASKED)
    (tmp_path / "out.jsonl.partial").unlink()
    assert predict_file(asker(), source, out, asked=ASKED, skip=True) == Counts(23, 1)


def test_two_calls_at_once(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", TEXTS)
    with open(tmp_path / ".out.jsonl.lock", "wb") as held:
        assert try_lock(held)
        with pytest.raises(ValueError, match=r"out\.jsonl"):
            predict_file(asker(), source, tmp_path / "out.jsonl", asked=ASKED)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_rows(tmp_path / "in.csv", TEXTS), tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        synced = []

        def full(handle: int) -> None:
            synced.append(handle)
            if len(synced) == 5:
                raise OSError(28, "No space left on device")

        patched.setattr(partial_files.os, "fsync", full)
        with pytest.raises(OSError, match="space"):
            predict_file(asker(), source, out, asked=ASKED)
    predict_file(asker(), source, out, asked=ASKED)
    assert read_jsonl(out) == expected()


def test_a_full_disk_in_the_last_step_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_rows(tmp_path / "in.csv", TEXTS), tmp_path / "out.csv"

    def full(answers: Path, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(output_formats, "_write_csv", full)
        with pytest.raises(OSError, match=r"space.*out\.csv"):
            predict_file(asker(), source, out, asked=ASKED)
    assert not out.exists() and len(read_jsonl(tmp_path / "out.csv.partial")) == 23
    assert predict_file(asker(None), source, out, asked=ASKED) == Counts(23, 0)  # without answering again
    assert len(open_rows(str(out))) == 23


def test_stdin_to_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = b'{"text": "ab"}\n\n[1]\n{"text": "abc", "id": 7}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    out = io.BytesIO()
    assert predict_stream(asker(), Path("-"), out, skip=True) == Counts(2, 1)
    records = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(r["text"], r["prediction"]) for r in records] == [("ab", "2"), ("abc", "3")] and records[1]["id"] == 7
    assert "stdin, line 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_million_rows_in_flat_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "WINDOW", 4096)
    source = tmp_path / "in.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        file.writelines(f'{{"text": "a short row {number}"}}\n' for number in range(1_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert predict_file(asker(), source, tmp_path / "out.csv", asked=ASKED) == Counts(1_000_000, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 200 * 1024, "the rows' places in the file are all that may stay"
    assert os.path.getsize(tmp_path / "out.csv") > 50_000_000
