"""Files behind URLs: found, downloaded once, and read as local ones."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from buckets import LOCAL, upload

from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources
from instructrec_jax.data.storage import Storage
from instructrec_jax.remote import fetched, find_remote, is_url, local_file, plain, shown

ROW = b'{"instruction": "a film", "output": "good"}\n'


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def website(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL, folder) of a web server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, LOCAL)
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()


def copies(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and not path.name.startswith(".")]


@pytest.mark.parametrize("store", ["bucket", "memory"])
def test_a_file_a_folder_and_a_pattern(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.getfixturevalue(store)
    for name in ("b.jsonl", "a.jsonl", "notes.md", "deep/c.jsonl"):
        upload(ROW, f"{url}/{name}")
    assert open_rows(f"{url}/a.jsonl").where(0) == f"{url}/a.jsonl, line 1"
    for several in (url, f"{url}/", f"{url}/?.jsonl"):
        opened = open_rows(several)
        assert [opened.where(number) for number in range(len(opened))] == [
            f"{url}/a.jsonl, line 1",
            f"{url}/b.jsonl, line 1",
        ]
    assert len(open_rows(f"{url}/**/*.jsonl")) == 3
    assert open_rows(url).row(1) == {"instruction": "a film", "output": "good"}


@pytest.mark.parametrize("store", ["bucket", "memory"])
def test_a_file_is_downloaded_once_and_again_when_it_changes(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = upload(ROW, f"{request.getfixturevalue(store)}/a.jsonl")
    first = local_file(url)
    time = first.stat().st_mtime_ns
    assert local_file(url) == first and first.stat().st_mtime_ns == time
    upload(ROW.replace(b"good", b"dull"), url)  # as many bytes
    second = local_file(url)
    assert second != first and second.read_bytes() != first.read_bytes() == ROW
    assert len(copies(tmp_path)) == 2


def test_a_web_page_is_one_file_and_its_query_stays_secret(website: tuple[str, Path]) -> None:
    url, folder = website
    (folder / "a.jsonl").write_bytes(ROW + b"{broken\n")
    opened = open_rows(f"{url}/a.jsonl?signature=secret")
    assert opened.where(1) == f"{url}/a.jsonl, line 2"
    with pytest.raises(ValueError) as error:
        open_sources([SourceConfig(path=f"{url}/a.jsonl?signature=secret", name="mine")])
    assert f"{url}/a.jsonl, line 2" in str(error.value) and "secret" not in str(error.value)
    with pytest.raises(ValueError, match=r"b\.jsonl: there is no such file") as missing:
        open_rows(f"{url}/b.jsonl?signature=secret")
    assert "secret" not in str(missing.value)
    assert plain("https://me:secret@host/a.csv?key=secret") == "https://host/a.csv"


def test_sources_from_a_bucket_keep_their_store_and_name_the_url(bucket: str, tmp_path: Path) -> None:
    url = upload(ROW * 3 + b'{"instruction": "", "output": "good"}\n', f"{bucket}/train.jsonl")
    with pytest.raises(ValueError, match=rf"{url}, line 4"):
        open_sources([SourceConfig(path=url)])
    storage = Storage(store=None, workers=1)
    for _ in range(2):
        opened = open_sources([SourceConfig(path=url)], on_bad_example="skip", storage=storage)
        assert [example.where for example in opened.sources[0]] == [f"{url}, line {line}" for line in (1, 2, 3)]
        assert opened.sources[0].skipped[0].where == f"{url}, line 4"
    upload(b"one\ntwo\n", f"{bucket}/a.en"), upload(b"eins\nzwei\n", f"{bucket}/a.de")
    pairs = open_sources([SourceConfig(path=f"{bucket}/a.en", targets=f"{bucket}/a.de")])
    assert pairs.sources[0][1].where == f"{bucket}/a.en, line 2 ({bucket}/a.de, line 2)"


def test_compressed_and_parquet_files(bucket: str) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    upload(gzip.compress(ROW), f"{bucket}/a.jsonl.gz")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"instruction": ["a film"], "output": ["good"]}), sink)
    upload(sink.getvalue().to_pybytes(), f"{bucket}/a.parquet")
    for name in ("a.jsonl.gz, line", "a.parquet, row"):
        opened = open_rows(f"{bucket}/{name.partition(',')[0]}")
        assert opened.row(0)["output"] == "good" and opened.where(0) == f"{bucket}/{name} 1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://nothing-there/a.jsonl", "s3://nothing-there/a.jsonl: "),
        ("{bucket}/none.jsonl", "no data files directly there .*no such file, folder or bucket"),
        ("{bucket}/*.csv", "no data files directly there"),
        ("{bucket}", "files there: notes.md"),
        ("ftp://host/a.jsonl", "ftp:// is not known; expected s3://, gs://"),
        ("{bucket}/notes.md", "unknown format .md"),
        ("{bucket}/empty.jsonl", "it is empty"),
    ],
)
def test_errors_name_the_url(url: str, message: str, bucket: str) -> None:
    upload(b"text", f"{bucket}/notes.md")
    if "empty" in url:
        upload(b"", f"{bucket}/empty.jsonl")
    url = url.format(bucket=bucket)
    with pytest.raises(ValueError, match=f"{url.replace('*', '.').rstrip('/')}.*{message.rpartition(': ')[2]}"):
        open_rows(url)


def test_wrong_credentials_and_a_silent_server_are_errors(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ValueError, match=r"s3://bucket/a.jsonl: cannot be read .*Check the URL, the credentials"):
        open_rows("s3://bucket/a.jsonl")
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "extra"), [("s3://b/a.csv", "s3"), ("gs://b/a.csv", "gcs"), ("https://b/a.csv", "https")]
)
def test_without_the_package_the_error_names_the_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_jax.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"{url}.*instructrec_jax\[{extra}\]"):
        open_rows(url)


def test_an_interrupted_download_leaves_nothing(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload(ROW, f"{memory}/a.jsonl")
    found = find_remote(url)[0]

    def broken(self: object, remote: str, local: str) -> None:
        Path(local).write_bytes(ROW[:5])

    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.memory.MemoryFileSystem.get_file", broken)
        with pytest.raises(ValueError, match=r"a\.jsonl: 5 bytes arrived of"):
            fetched(found)
    assert not copies(tmp_path)
    assert fetched(found).read_bytes() == ROW


def test_local_paths_are_no_urls(tmp_path: Path) -> None:
    assert not is_url(tmp_path) and not is_url("a/b") and not is_url("C:/x") and is_url("s3://b/x")
    assert shown(tmp_path / "a.csv") == str(tmp_path / "a.csv")
    assert local_file("~/a.csv") == Path(os.path.expanduser("~/a.csv"))
