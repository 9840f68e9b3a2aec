"""What is nearest to images and captions."""

from types import SimpleNamespace

import numpy as np
from tiny_pictures import png

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.tasks.encoded import Encoded
from instructrec_jax.tasks.text.nearest_pairs import COMPARED, SHOWN, compared, shown_pairs


def test_nearest_are_those_of_all_pairs_and_equal_ones_count_once() -> None:
    rng = np.random.default_rng(0)
    pictures = [Picture.of(png(number)) for number in (0, 1, 2, 3, 4, 0)]  # the first and the last are the same
    captions = ["a", "b", "c", "b", "d", "e"]
    encoded = [
        Encoded(
            Text(np.zeros(1, np.int32)),
            SimpleNamespace(said=said, picture=picture.digest),
            Example(instruction="", images=(picture,)),
        )
        for said, picture in zip(captions, pictures, strict=True)
    ]
    outputs = rng.normal(size=(6, 2, 8))
    (shown,) = shown_pairs(encoded, outputs, np.array([2]))
    unit = outputs / np.linalg.norm(outputs, axis=-1, keepdims=True)
    texts, images = [0, 1, 2, 4, 5], [0, 1, 2, 3, 4]
    best = sorted(texts, key=lambda n: -unit[n, 0] @ unit[2, 1])[:4]
    assert [answer["text"] for answer in shown["answers"]] == [captions[n] for n in best]
    np.testing.assert_allclose([a["score"] for a in shown["answers"]], [unit[n, 0] @ unit[2, 1] for n in best])
    near = sorted(images, key=lambda n: -unit[n, 1] @ unit[2, 0])[:4]
    assert [each["hit"] for each in shown["nearest"]] == [n == 2 for n in near]
    assert shown["wanted"] == "c" and shown["instruction"] == shown["pictures"][0]["name"]


def test_few_of_many_are_compared_and_shown() -> None:
    numbers, places = compared(COMPARED + 500, 3)
    assert len(numbers) == len(set(numbers.tolist())) == COMPARED and (np.diff(numbers) > 0).all()
    assert len(set(places.tolist())) == SHOWN
    numbers, places = compared(3, 0)
    assert numbers.tolist() == [0, 1, 2] and sorted(places.tolist()) == [0, 1, 2]
