"""Compressed files and UTF-16: temporary copies, and when they are deleted."""

import gc
import gzip
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from instructrec_jax.data import unpacked
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.unpacked import PlainFile

LINES = b'{"a": 1}\n{"a": 2}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(unpacked.tempfile, "tempdir", str(own))
    return own


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.name != "lock"]


def zipped(path: Path, data: bytes = LINES) -> Path:
    path.write_bytes(gzip.compress(data, mtime=0))
    return path


def test_a_plain_file_is_read_where_it_lies(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    assert PlainFile(path, text=True).path == path and not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["gzip", "zstd", "utf-16", "gzip of utf-16"])
def test_a_copy_lives_as_long_as_its_reader(tmp_path: Path, folder: Path, kind: str) -> None:
    path = tmp_path / "a"
    data = LINES.decode().encode("utf-16") if "utf-16" in kind else LINES
    if "gzip" in kind:
        data = gzip.compress(data[:9]) + gzip.compress(data[9:])  # two members, as bgzip and `cat` write
    if kind == "zstd":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes(data)
    plain = PlainFile(path, text=True)
    (copy,) = copies(folder)
    other = pickle.loads(pickle.dumps(plain))
    assert plain.read(9, 17) == other.read(9, 17) == b'{"a": 2}'
    del other
    gc.collect()
    assert copy.exists()
    handle = unpacked._opened(plain.path, plain._identity)
    del plain
    gc.collect()
    assert not copy.exists() and unpacked._opened.cache_info().currsize == 0
    handle.close()


def test_bytes_that_are_no_text_are_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"\xff\xfeab")
    assert PlainFile(path, text=False).read(0, 4) == b"\xff\xfeab"


def test_another_process_reads_the_copy_and_leaves_it(tmp_path: Path, folder: Path) -> None:
    rows = open_rows(str(zipped(tmp_path / "a.jsonl.gz")))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).row(1))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(rows), capture_output=True, timeout=120, check=True
    )
    assert done.stdout.strip() == b"{'a': 2}" and len(copies(folder)) == 1
    if (child := os.fork()) == 0:
        del rows
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert rows.row(0) == {"a": 1} and len(copies(folder)) == 1


def test_copies_of_killed_processes_are_deleted(tmp_path: Path, folder: Path) -> None:
    path = zipped(tmp_path / "a.jsonl.gz")
    code = (
        "import os, signal, sys, tempfile; from instructrec_jax.data.rows import open_rows; "
        f"tempfile.tempdir = {str(folder)!r}; rows = open_rows({str(path)!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=120)
    (left,) = copies(folder)
    first, second = (open_rows(str(path)) for _ in range(2))
    assert not left.exists() and len(copies(folder)) == 2 and first.row(0) == second.row(0)


def test_a_folder_ends_with_its_process(tmp_path: Path, folder: Path) -> None:
    path = zipped(tmp_path / "a.jsonl.gz")
    code = (
        "import tempfile; from instructrec_jax.data.rows import open_rows; "
        f"tempfile.tempdir = {str(folder)!r}; rows = open_rows({str(path)!r}); print(rows.row(1))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=True, capture_output=True)
    assert done.stdout.strip() == b"{'a': 2}" and not list(folder.iterdir())


def test_a_folder_that_another_process_took_is_made_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock, it looks like that of a killed process."""
    locks = iter([False, True])
    monkeypatch.setattr(unpacked, "try_lock", lambda file: next(locks))
    rows = open_rows(str(zipped(tmp_path / "a.jsonl.gz")))
    assert rows.row(1) == {"a": 2} and len(list(folder.iterdir())) == 2


def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:03}.jsonl").write_bytes(LINES)
        zipped(tmp_path / f"{number:03}.x.jsonl.gz")
    rows = open_rows(str(tmp_path))
    before = len(os.listdir("/dev/fd"))
    assert [rows.row(n)["a"] for n in range(400)] == [1, 2] * 200
    assert len(os.listdir("/dev/fd")) <= before + 64


def test_a_file_that_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    rows = pickle.dumps(open_rows(str(path)))
    unpacked._opened.cache_clear()
    path.unlink()
    with pytest.raises(ValueError, match="a.jsonl: it was deleted"):
        pickle.loads(rows).row(0)


def test_a_full_disk_names_the_folder(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    class Full(io.BytesIO):
        write = full

    monkeypatch.setattr(unpacked.os, "fdopen", lambda handle, mode: os.close(handle) or Full())
    with pytest.raises(ValueError, match="a.jsonl.gz.*temporary.*No space left.*TMPDIR"):
        open_rows(str(zipped(tmp_path / "a.jsonl.gz")))
    gc.collect()
    assert not copies(folder)


def test_memory_is_that_of_a_chunk(tmp_path: Path, folder: Path) -> None:
    import tracemalloc

    path = zipped(tmp_path / "a.jsonl.gz", b'{"a": "' + b"x" * 30_000_000 + b'"}\n')
    tracemalloc.start()
    rows = open_rows(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 1 and peak < 15e6
