"""The verb `predict`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import task_config
from tiny_runs import untrained_run

from instructrec_jax.answering.partial_files import Index
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.predict import main
from instructrec_jax.runs.directory import RunLock

TEXTS = ["a good film about war", "an old book", "very dull music"]


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    return untrained_run(folder / "run", task_config("classification", folder), checkpoint, 64)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", [{"instruction": text, "id": n} for n, text in enumerate(TEXTS)])
    return tmp_path / "rows.jsonl"


def test_a_file_and_a_text(run: Path, rows: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    main([str(run), "--input", str(rows), "--out", str(tmp_path / "out.jsonl")])
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [(record["id"], record["instruction"]) for record in found] == list(enumerate(TEXTS))
    assert b"3 rows answered, 0 rejected" in capsysbinary.readouterr().err
    main([str(run), "--text", TEXTS[1]])
    (line,) = capsysbinary.readouterr().out.splitlines()
    assert json.loads(line)["prediction"] == found[1]["prediction"]


def test_a_filter(run: Path, rows: Path) -> None:
    """Nothing but results on stdout; a broken line stops it with status 2, after the lines before it."""
    filtering, names = command(run, "--input", "-"), environment()
    done = subprocess.run(filtering, input=rows.read_bytes(), capture_output=True, env=names, check=True)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [0, 1, 2]
    done = subprocess.run(filtering, input=b"{broken\n", capture_output=True, env=names)
    assert done.returncode == 2 and b"stdin, line 1" in done.stderr and not done.stdout


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "instructrec_jax.predict", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | more


def test_two_processes_share_the_rows(run: Path, tmp_path: Path) -> None:
    """Without a connection; together they give what one process gives."""
    write_jsonl(tmp_path / "in.jsonl", [{"instruction": f"{text} {n}", "id": n} for n in range(4) for text in TEXTS])
    main([str(run), "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "one.jsonl")])
    both = command(run, "--input", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    names = [environment(PROCESS_ID=str(number), NUM_PROCESSES="2") for number in range(2)]
    started = [subprocess.Popen(both, env=each, stderr=subprocess.PIPE, text=True) for each in names]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    parts = read_json(tmp_path / "out.jsonl.index.json", Index)["parts"]
    found = [row for part in parts for row in read_jsonl(tmp_path / part["file"])]
    for row, other in zip(found, read_jsonl(tmp_path / "one.jsonl"), strict=True):
        assert row.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-6)
        assert row == other


def test_several_processes_need_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCESS_ID", "0")
    monkeypatch.setenv("NUM_PROCESSES", "2")
    for arguments in (["--text", "a"], ["--input", "-"]):
        with pytest.raises(ValueError, match="2 processes"):
            main([str(run), *arguments])


def test_a_reader_that_has_seen_enough(run: Path, tmp_path: Path) -> None:
    """As `| head -1`: no traceback, no word; a stdout that is full is one line and status 2."""
    write_jsonl(tmp_path / "in.jsonl", [{"instruction": text, "note": "long " * 9999} for text in TEXTS])
    reads = subprocess.Popen(
        command(run, "--input", "-"),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert reads.stdin and reads.stdout and reads.stderr
    reads.stdin.write((tmp_path / "in.jsonl").read_bytes())
    reads.stdin.flush()  # and stays open: a thread of the verb is still reading
    assert json.loads(reads.stdout.readline())["instruction"] == TEXTS[0]
    reads.stdout.close()
    with contextlib.suppress(BrokenPipeError):  # it has ended, unless all answers so far fitted into the pipe
        reads.stdin.write((tmp_path / "in.jsonl").read_bytes())
        reads.stdin.flush()
    said = reads.stderr.read()
    assert reads.wait() == 128 + signal.SIGPIPE and said == b""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(run, "--text", "a"), stdout=full, stderr=subprocess.PIPE, env=environment(), text=True
        )
    assert done.returncode == 2 and "space" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_run_in_training_is_refused(run: Path, rows: Path, tmp_path: Path) -> None:
    arguments = ["--input", str(rows), "--out", str(tmp_path / "out.jsonl")]
    with RunLock(run) as lock:
        lock.take()
        with pytest.raises(ValueError, match=f"{run.name}.*process {os.getpid()}.*--step"):
            main([str(run), *arguments])
        with pytest.raises(ValueError, match="--step"):
            main([str(run), "--vectors", "--input", str(rows), "--out", str(tmp_path / "out.npy")])
        assert not list(tmp_path.glob("*out*"))
        main([str(run), *arguments, "--step", "1"])
    (run / ".lock").unlink()


def test_vectors_of_a_run_and_of_a_folder(run: Path, checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    main([str(run), "--vectors", "--input", str(rows), "--out", str(tmp_path / "run.npy")])
    main([str(checkpoint), "--vectors", "--input", str(rows), "--out", str(tmp_path / "folder.npy")])
    main([str(checkpoint), "--vectors", "--input", str(rows), "--out", str(tmp_path / "folder.parquet")])
    import pyarrow.parquet as pq

    vectors = np.load(tmp_path / "folder.npy")
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.load(tmp_path / "run.npy"), vectors, atol=1e-6)  # an untrained run
    table = pq.read_table(tmp_path / "folder.parquet")
    assert table.column("instruction").to_pylist() == TEXTS
    np.testing.assert_allclose(np.array(table.column("vector").to_pylist()), vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ([], "--input"),
        (["--text", "a", "--input", "x"], "--input"),
        (["--text", "a", "--out", "x.csv"], "--out needs"),
        (["--input", "rows.jsonl", "--out", "x.txt"], "x.txt"),
        (["--input", "missing.jsonl", "--out", "x.csv"], "missing.jsonl"),
        (["--vectors", "--input", "rows.jsonl", "--out", "x.csv"], "npy"),
        (["--vectors", "--text", "a"], "--vectors needs"),
    ],
)
def test_what_does_not_go_together(
    args: list[str], match: str, run: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    with pytest.raises((ValueError, OSError), match=match):
        main([str(run), *args])


def test_a_folder_is_no_run(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="not a run directory"):
        main([str(checkpoint), "--text", "a"])
