"""A picture by reference: known by its bytes, and read only while they are the same."""

from pathlib import Path

import pytest
from tiny_pictures import png

from instructrec_jax.data.media.picture import Picture, digest_of, picture


def test_equal_pictures_have_equal_bytes_wherever_they_lie(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(1))
    found = Picture(digest_of(png(1)), str(file))
    assert found == picture(png(1)) and hash(found) == hash(picture(png(1))) and found != picture(png(2))
    for each in (found, picture(png(1))):
        again = Picture.from_record(each.to_record())
        assert again == each and again.read() == png(1) and again.path == each.path


def test_another_picture_in_its_place_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(1))
    found = Picture(digest_of(png(1)), str(file))
    file.write_bytes(png(2))
    with pytest.raises(ValueError, match=r"a\.png is another one than when the data were read"):
        found.read()
    file.unlink()
    with pytest.raises(ValueError, match=r"a\.png cannot be read \(No such file"):
        found.read()
