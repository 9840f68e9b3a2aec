"""Examples are known by their content, wherever their pictures lie."""

import hashlib
import json
from pathlib import Path

from tiny_pictures import png

from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import digest_of_example, fingerprint, fingerprint_bytes, json_and_digest
from instructrec_jax.data.media.picture import Picture, digest_of, picture


def test_the_fingerprint_follows_content_and_order() -> None:
    a, b = Example(instruction="a"), Example(instruction="b")
    assert fingerprint([a, b]) == fingerprint([a, b])
    assert len({fingerprint(x) for x in ([a, b], [b, a], [a], [Example(instruction="ab")])}) == 4
    assert fingerprint([a]) == hashlib.sha256(hashlib.sha256(b'{"instruction": "a"}\n').digest()).hexdigest()


def test_a_picture_counts_by_its_bytes(tmp_path: Path) -> None:
    inline = Example(instruction="", images=(picture(png(1)),))
    lying = Example(instruction="", images=(Picture(digest_of(png(1)), str(tmp_path / "a.png")),))
    other = Example(instruction="", images=(picture(png(2)),))
    assert digest_of_example(inline) == digest_of_example(lying) != digest_of_example(other)
    assert str(tmp_path).encode() not in fingerprint_bytes(lying)
    for each in (inline, lying):
        kept, digest = json_and_digest(each)
        again = Example.from_record(json.loads(kept))
        assert again == each and again.images[0].path == each.images[0].path
        assert again.images[0].data == each.images[0].data and digest == digest_of_example(each)
