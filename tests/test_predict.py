"""The verb `predict`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import task_config
from tiny_runs import untrained_run

from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.predict import main

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
    command = [sys.executable, "-m", "instructrec_jax.predict", str(run), "--input", "-"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, input=rows.read_bytes(), capture_output=True, env=environment, check=True)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [0, 1, 2]
    done = subprocess.run(command, input=b"{broken\n", capture_output=True, env=environment)
    assert done.returncode == 2 and b"stdin, line 1" in done.stderr and not done.stdout


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
