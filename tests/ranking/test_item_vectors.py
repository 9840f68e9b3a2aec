import logging

import numpy as np
import pytest

from instructrec_jax.data.batch import Text
from instructrec_jax.ranking import item_vectors as module
from instructrec_jax.ranking.item_vectors import item_vectors

FINGERPRINT = {"weights": "abc", "step": 3, "pooling": {"kind": "mean", "normalise": True}}


def text(*tokens, **rest):
    return Text(np.array(tokens, np.int32), **rest)


TEXTS = [text(1, 2), text(3), text(4, 5, 6), text(1), text(9, 9)]


class Model:
    """Vectors that tell which text they come from; counts its texts."""

    def __init__(self, scale=1.0):
        self.scale, self.calls = scale, []

    def __call__(self, texts, **_):
        self.calls.append(len(texts))
        return [self.scale * np.array([t.tokens.sum(), len(t.tokens), 0.1], np.float64) for t in texts]


def expected(scale=1.0):
    return np.array([[scale * x for x in (t.tokens.sum(), len(t.tokens), 0.1)] for t in TEXTS], np.float32)


def test_computed_once_then_read(tmp_path):
    model = Model()
    first = item_vectors(model, TEXTS, FINGERPRINT, tmp_path / "run" / "item_vectors")
    again = item_vectors(model, list(TEXTS), dict(reversed(FINGERPRINT.items())), tmp_path / "run" / "item_vectors")
    assert model.calls == [5]
    for found in (first, again):
        np.testing.assert_array_equal(found, expected())
        assert found.dtype == np.float32 and isinstance(found, np.memmap) and not found.flags.writeable
    assert len(list((tmp_path / "run" / "item_vectors").iterdir())) == 1


def test_blocks_of_texts_give_the_same_file(tmp_path, monkeypatch):
    item_vectors(Model(), TEXTS, FINGERPRINT, tmp_path / "whole")
    monkeypatch.setattr(module, "TEXTS", 2)
    model = Model()
    item_vectors(model, TEXTS, FINGERPRINT, tmp_path / "parts")
    assert model.calls == [2, 2, 1]
    (whole,), (parts,) = (tuple((tmp_path / name).iterdir()) for name in ("whole", "parts"))
    assert whole.name == parts.name and whole.read_bytes() == parts.read_bytes()
    np.testing.assert_array_equal(np.load(whole), expected())


@pytest.mark.parametrize(
    ("texts", "fingerprint"),
    [
        (TEXTS, FINGERPRINT | {"step": 4}),
        (TEXTS, FINGERPRINT | {"weights": "abd"}),
        (TEXTS, FINGERPRINT | {"pooling": {"kind": "cls", "normalise": True}}),
        (TEXTS[::-1], FINGERPRINT),
        ([text(1, 2, 3), text(), *TEXTS[2:]], FINGERPRINT),  # the same tokens one after another, cut elsewhere
        ([text(1, 2, types=np.array([0, 1])), *TEXTS[1:]], FINGERPRINT),
        (TEXTS[:4], FINGERPRINT),
    ],
)
def test_whatever_changed_is_computed_again(tmp_path, texts, fingerprint):
    old = item_vectors(Model(), TEXTS, FINGERPRINT, tmp_path)
    model = Model(2.0)
    new = item_vectors(model, texts, fingerprint, tmp_path)
    assert model.calls == [len(texts)]
    np.testing.assert_array_equal(new, np.array(Model(2.0)(texts), np.float32))
    np.testing.assert_array_equal(old, expected())
    assert item_vectors(model, TEXTS, FINGERPRINT, tmp_path)[0, 0] == expected()[0, 0]  # and the old ones still stand


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_broken_file_is_computed_again(tmp_path, damage, caplog):
    item_vectors(Model(), TEXTS, FINGERPRINT, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "other":
        np.save(path, np.zeros((4, 3), np.float32))
    else:
        path.write_bytes(b"" if damage == "empty" else content[:-5])
    with caplog.at_level(logging.WARNING):
        found = item_vectors(Model(), TEXTS, FINGERPRINT, tmp_path)
    np.testing.assert_array_equal(found, expected())
    assert path.name in caplog.text and path.read_bytes() == content


def test_nothing_is_left_of_a_failed_model(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TEXTS", 2)

    def model(texts):
        return [np.full(3, np.nan if t is TEXTS[3] else 1.0) for t in texts]

    with pytest.raises(ValueError, match="item 3"):
        item_vectors(model, TEXTS, FINGERPRINT, tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="items"):
        item_vectors(Model(), [], FINGERPRINT, tmp_path)
    with pytest.raises(ValueError, match="fingerprint"):
        item_vectors(Model(), TEXTS, {}, tmp_path)
    with pytest.raises(ValueError, match="fingerprint.*JSON"):
        item_vectors(Model(), TEXTS, {"path": tmp_path}, tmp_path)
    with pytest.raises(ValueError, match=r"item vector.*\[2, 3\]"):
        item_vectors(lambda texts: [np.ones((2, 3))] * len(texts), TEXTS, FINGERPRINT, tmp_path)
