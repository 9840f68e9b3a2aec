import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "scripts" / "download_movielens.py"
spec = importlib.util.spec_from_file_location("download_movielens", PATH)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def make(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return path


def test_fetch_unpacks_whole_or_not_at_all(tmp_path):
    make(tmp_path / "ml-latest-small.zip", **{"ml-latest-small__movies.csv": "movieId,title,genres\n"})
    address = tmp_path.as_uri() + "/{name}.zip"
    folder = script.fetch("ml-latest-small", tmp_path / "data", address)
    assert (folder / "movies.csv").read_text().startswith("movieId")
    with pytest.raises(ValueError, match="small"):
        script.fetch("ml-latest-small", tmp_path / "data", address)
    make(tmp_path / "ml-100k.zip", **{"ml-100k__u.data": "1\t1\t1\t1\n"})
    with pytest.raises(ValueError, match="MD5"):
        script.fetch("ml-100k", tmp_path / "data", address)
    with pytest.raises(ValueError, match="cannot be reached"):
        script.fetch("ml-1m", tmp_path / "data", address)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["ml-latest-small"]


def test_check(tmp_path):
    archive = make(tmp_path / "a.zip", file="some text that is stored as it stands")
    script.check(archive, hashlib.md5(archive.read_bytes()).hexdigest())
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"some text", b"same text"))
    with pytest.raises(ValueError, match="file in a.zip"):
        script.check(archive, None)
    archive.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="a.zip"):
        script.check(archive, None)


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "ml/../../outside.txt", "..\\outside.txt"])
def test_unpack_stays_inside(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("ml/fine.txt", "fine")
        archive.writestr(name, "evil")
    with pytest.raises(ValueError, match="a.zip"):
        script.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "outside.txt").exists()


def test_unpack_refuses_links(tmp_path):
    link = zipfile.ZipInfo("ml/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="a.zip"):
        script.unpack(tmp_path / "a.zip", tmp_path / "out")
