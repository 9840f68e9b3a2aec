"""Members of archives: read by name, and named where they cannot be."""

import tarfile
from pathlib import Path

import pytest
from tiny_pictures import png, tar, zipped

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.media import archives
from instructrec_jax.data.media.archives import archive_in, members, read_member
from instructrec_jax.data.media.picture_references import PictureFolder, read_pictures


@pytest.mark.parametrize("make", [tar, zipped])
def test_members_are_read_by_name(make, tmp_path: Path) -> None:
    archive = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", {"x/1.png": png(1), "2.png": png(2)})
    assert list(members(archive)) == ["x/1.png", "2.png"]
    assert read_member(archive, "x/1.png") == png(1)
    (found,) = read_pictures(f"{archive.name}/x/1.png", PictureFolder(tmp_path))
    assert found.read() == png(1) and archive_in(Path(found.path)) == (archive, "x/1.png")
    with pytest.raises(BadExample, match=r"has no file '3\.png': it has x/1\.png, 2\.png"):
        read_pictures(f"{archive.name}/3.png", PictureFolder(tmp_path))


def test_an_archive_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"1.png": png(1)})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.tar").symlink_to(tmp_path / "a.tar")
    for path in ("../a.tar/1.png", "b.tar/1.png"):
        with pytest.raises(BadExample, match="lies outside"):
            read_pictures(path, PictureFolder(tmp_path / "data"))


def test_damaged_and_boundless_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar(tmp_path / "a.tar", {"1.png": png(1)})
    whole = archive.read_bytes()
    archive.write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"a\.tar"):
        read_member(archive, "1.png")
    (tmp_path / "b.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match=r"b\.tar cannot be read as a \.tar"):
        members(tmp_path / "b.tar")
    (tmp_path / "b.zip").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match=r"b\.zip cannot be read as a \.zip"):
        members(tmp_path / "b.zip")
    monkeypatch.setattr(archives, "LARGEST", 1 << 16)
    bomb = zipped(tmp_path / "c.zip", {"1.png": bytes(1 << 20)})
    assert bomb.stat().st_size < 1 << 12
    with pytest.raises(ValueError, match="1,048,576 bytes, more than the 65,536"):
        read_member(bomb, "1.png")


def test_links_inside_of_a_tar_lead_nowhere(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    with pytest.raises(ValueError, match=r"no file '1\.png'"):
        read_member(tmp_path / "a.tar", "1.png")
