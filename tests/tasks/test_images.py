"""Examples of pictures, encoded: each picture is a token, and an unusable one is named before training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_pictures import png

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.picture import picture
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import open_task
from instructrec_jax.tasks import ClassificationConfig, LanguageModelConfig
from instructrec_jax.tasks.encoded_store import encode_stored, token_key
from instructrec_jax.tasks.encoding import encode_usable


def opened(folder: Path, **settings: Any) -> Any:
    data = DataConfig(**({"max_length": 8} | settings))
    config = Config(backbone=BackboneConfig(str(folder)), task=ClassificationConfig(labels=["cat", "dog"]), data=data)
    return open_task(config, folder)


def example(*data: bytes, **fields: Any) -> Example:
    return Example(**({"instruction": "", "output": "cat"} | fields), images=tuple(map(picture, data)))


def test_a_picture_is_a_token(image_networks: dict[str, Path]) -> None:
    encoded = opened(image_networks["vit"]).encode([example(png(0)), example(png(1), png(2), output="dog")])
    assert [len(e.text.tokens) for e in encoded] == [1, 2]
    assert [e.text.images.places.tolist() for e in encoded] == [[0], [0, 1]]
    assert [e.target.label for e in encoded] == [0, 1]


BAD = [
    (example(), "it has no picture"),
    (example(png(0), instruction="what is it?"), "has the words 'what is it\\?'"),
    (example(*map(png, range(9))), "it has 9 pictures, but data.max_length is 8"),
    (example(png(0)[:99]), "cannot be read as a picture"),
    (example(png(0, mode="I;16")), "mode I;16"),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_an_unusable_picture_is_named_or_skipped(bad: Example, said: str, image_networks: dict[str, Path]) -> None:
    task, good = opened(image_networks["vit"]), example(png(0))
    placed = [
        Example(**{**{n: getattr(e, n) for n in ("instruction", "output", "images")}, "where": f"line {number}"})
        for number, e in enumerate([good, bad, good])
    ]
    with pytest.raises(BadExample, match=f"line 1: .*{said}"):
        encode_usable(task, placed, "error")
    encoded, skipped = encode_usable(task, placed, "skip")
    assert len(encoded) == 2 and [row.where for row in skipped] == ["line 1"]


def test_a_task_on_words_refuses_pictures(checkpoint: Path) -> None:
    task = opened(checkpoint, max_length=32)
    with pytest.raises(ValueError, match=r"this task does not read image.*fields.ignore to \[image\]"):
        encode_usable(task, [example(png(0), instruction="a film")], "error")


def test_a_task_without_images_refuses_a_network_of_images(image_networks: dict[str, Path]) -> None:
    config = Config(backbone=BackboneConfig(str(image_networks["vit"])), task=LanguageModelConfig())
    with pytest.raises(ValueError, match="holds a network of images"):
        open_task(config, image_networks["vit"])


def test_a_store_holds_references_and_gives_the_same_texts(image_networks: dict[str, Path], tmp_path: Path) -> None:
    task = opened(image_networks["vit"])
    examples = [example(png(number), png(number + 1)) for number in range(4)]

    class Source:
        fingerprint = "x"

        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, index: int) -> Example:
            return examples[index]

        def digest(self, index: int) -> bytes:
            return bytes(32)

    key = token_key(task, {}, "x", np.arange(4), "error")
    encoded = encode_stored(task, Source(), np.arange(4), "error", folder=tmp_path, key=key)
    assert encoded.image_counts is not None and encoded.image_counts.tolist() == [2] * 4
    for stored, plain in zip(encoded, task.encode(examples), strict=True):
        assert list(stored.text.images.pictures) == list(plain.text.images.pictures)
        assert np.array_equal(stored.text.images.places, plain.text.images.places)
        assert stored.text.images.read is task.context.pixels
    assert key != token_key(opened(image_networks["clip"]), {}, "x", np.arange(4), "error")
