"""scripts/download_domain_data.py, against a server of its own: whole or not at all, resumed, and named errors."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import download_domain_data
import pytest
from download_domain_data import ADDRESSES, fetch

FILES: dict[str, bytes] = {}
CUT: dict[str, int] = {}  # how many bytes of a file the server sends before it hangs up
ASKED: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ranged, body = self.headers.get("Range"), FILES.get(self.path)
        ASKED.append((self.path, ranged))
        if body is None:
            return self.send_error(404)
        begin = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged and self.path != "/whole.txt" else 0
        if begin > len(body):
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        self.wfile.write(body[begin : CUT.pop(self.path, len(body))])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    for known in (FILES, CUT, ASKED):
        known.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def zipped(**files: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return made.getvalue()


def tarred(member: tarfile.TarInfo, text: bytes = b"") -> bytes:
    made = io.BytesIO()
    member.size = len(text)
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        archive.addfile(member, io.BytesIO(text))
    return made.getvalue()


def test_files_and_archives(address, tmp_path):
    FILES.update(
        {
            "/a/x.json": b"1",
            "/b/x.json": b"2",
            "/c.zip": zipped(dev__a="3"),
            "/d.tar.gz": tarred(tarfile.TarInfo("t/b"), b"4"),
        }
    )
    sets = {"exam": [f"{address}/{name}" for name in ("a/x.json", "b/x.json", "c.zip", "d.tar.gz")]}
    folder = fetch("exam", tmp_path, sets)
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"a/x.json": "1", "b/x.json": "2", "dev/a": "3", "t/b": "4"}
    assert [path.name for path in tmp_path.iterdir()] == ["exam"]
    with pytest.raises(ValueError, match="exists already"):
        fetch("exam", tmp_path, sets)
    with pytest.raises(ValueError, match="of one file; exam has 4"):
        fetch("exam", tmp_path / "other", sets, sha256="0")


@pytest.mark.parametrize("name", ["big.txt", "whole.txt"])  # with and without ranges
def test_an_interrupted_download_is_resumed(name, address, tmp_path):
    FILES[f"/{name}"] = body = bytes(range(256)) * 400
    CUT[f"/{name}"] = 5000
    sets = {"one": [f"{address}/first.txt", f"{address}/{name}"]}
    FILES["/first.txt"] = b"first"
    with pytest.raises((ValueError, OSError)):
        fetch("one", tmp_path, sets)
    assert not (tmp_path / "one").exists()
    folder = fetch("one", tmp_path, sets)
    assert (folder / name).read_bytes() == body and (folder / "first.txt").read_bytes() == b"first"
    assert ASKED == [("/first.txt", None), (f"/{name}", None), (f"/{name}", "bytes=5000-")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_sums(address, tmp_path):
    FILES["/x.csv"] = b"a,b"
    sets = {"x": [f"{address}/x.csv"]}
    with pytest.raises(ValueError, match="x.csv has the SHA-256 .* instead of 00"):
        fetch("x", tmp_path, sets, sha256="00")
    assert fetch("x", tmp_path, sets, sha256=hashlib.sha256(b"a,b").hexdigest().upper()).is_dir()


def outside(kind: bytes = tarfile.REGTYPE, name: str = "../evil") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return tarred(member)


@pytest.mark.parametrize(
    ("file", "body", "message"),
    [
        ("x.zip", b"<html>sign in</html>", "x.zip is not a zip archive"),
        ("x.tar", b"<html>sign in</html>", "x.tar is not a tar archive"),
        ("x.zip", zipped(**{"..__evil": "x"}), "outside the folder"),
        ("x.tar.gz", outside(), "x.tar.gz: .*evil"),
        ("x.tar.gz", outside(tarfile.SYMTYPE, "link"), "'link', which is neither"),
        ("x.txt", None, "answers 404"),
    ],
)
def test_what_is_wrong_is_named(file, body, message, address, tmp_path):
    FILES.update({} if body is None else {f"/{file}": body})
    for _ in range(2):  # a bad archive is not kept for the next try
        with pytest.raises(ValueError, match=message):
            fetch("x", tmp_path / "out", {"x": [f"{address}/{file}"]})
    assert not (tmp_path / "out" / "x").exists() and not (tmp_path / "evil").exists()


def test_a_file_that_changed_between_two_tries(address, tmp_path):
    FILES["/x.txt"], CUT["/x.txt"] = b"x" * 9000, 5000
    for message in ("interrupted|", "has changed since the last try"):
        with pytest.raises((ValueError, OSError), match=message):
            fetch("x", tmp_path, {"x": [f"{address}/x.txt"]})
        FILES["/x.txt"] = b"short"
    assert (fetch("x", tmp_path, {"x": [f"{address}/x.txt"]}) / "x.txt").read_bytes() == b"short"


def test_without_a_network(tmp_path, monkeypatch):
    nowhere = {name: ["http://127.0.0.1:9/x.json"] for name in ADDRESSES}
    with pytest.raises(ValueError, match="cannot be reached: .*Is this machine online"):
        fetch("arc", tmp_path, nowhere)

    def offline(*_: object, **__: object) -> None:
        raise ValueError("cannot be reached")

    monkeypatch.setattr(download_domain_data, "fetch", offline)
    with pytest.raises(SystemExit, match="download_domain_data: cannot be reached"):
        download_domain_data.main(["pubmedqa", "--out", str(tmp_path)])
