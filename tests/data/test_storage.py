"""Where prepared data lie, and what they are known by."""

from pathlib import Path

import pytest

from instructrec_jax.data import storage
from instructrec_jax.data.storage import KEPT_FROM, PARALLEL_FROM, Storage, code_version, digest_of, digest_of_texts


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "data" / "a.jsonl"
    assert Storage(None).folder(file) == tmp_path / "data" / ".instructrec"
    assert Storage(None).folder(None) == tmp_path / "cache" / "instructrec_jax"
    assert Storage(str(tmp_path / "mine")).folder(file) == tmp_path / "mine"
    assert Storage("memory").folder(file) is None
    assert Storage().folder(file) is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Storage(None).folder(None) == Path.home() / ".cache" / "instructrec_jax"


def test_small_data_need_neither_files_nor_processes() -> None:
    assert Storage(None).kept_from == KEPT_FROM
    assert Storage("mine").kept_from == 0
    assert Storage(None).processes(PARALLEL_FROM - 1) == 1
    assert Storage(None).processes(PARALLEL_FROM) >= 1
    assert Storage(None, workers=3).processes(10) == 3


def test_digests_of_files(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file, content in zip(files, (b"x" * 20_000_000, b"x" * 20_000_000, b"x" * 19_999_999 + b"y"), strict=True):
        file.write_bytes(content)
    one, two, other = digest_of(files)
    assert one == two != other
    with pytest.raises(ValueError, match="nowhere.*cannot be read"):
        digest_of([tmp_path / "nowhere"])
    assert digest_of_texts(["ab", "c"]) != digest_of_texts(["a", "bc"])


def test_other_code_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.py").write_text("1")
    first = code_version.__wrapped__("data")
    assert code_version.__wrapped__("data") == first
    (tmp_path / "data" / "a.py").write_text("2")
    assert code_version.__wrapped__("data") != first
