"""What is nearest to the images and captions of a few pairs, for people to see."""

from collections.abc import Sequence

import numpy as np

from instructrec_jax.tasks.answers import Shown, ShownOutput, ShownPicture, shown_picture
from instructrec_jax.tasks.encoded import Encoded

COMPARED = 2000  # pairs whose vectors are compared
SHOWN = 5  # pairs that are shown
NEAREST = 4


def compared(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the pairs that are compared, ascending; the places in these of the pairs that are shown).

    Both are drawn from all `count` pairs by the seed.
    """
    drawn = np.random.default_rng(seed).permutation(count)[:COMPARED]
    numbers = np.sort(drawn)
    return numbers, np.searchsorted(numbers, drawn[:SHOWN])


def shown_pairs(encoded: Sequence[Encoded], outputs: np.ndarray, places: np.ndarray) -> list[Shown]:
    """The pairs at `places`: each image with its nearest captions, and the images that are nearest to its caption.

    Equal captions, and equal images, are one. Scores are cosines.

    Args:
      encoded: pairs; `target` has what was `said`, and the hash of the `picture`.
      outputs: float [pairs, 2, width]: the vectors of caption and image.
    """
    vectors = outputs / np.maximum(np.linalg.norm(outputs, axis=-1, keepdims=True), 1e-12)
    said = np.array([e.target.said for e in encoded], object)
    pictures = np.array([e.target.picture for e in encoded], object)
    captions, images = (np.sort(np.unique(each.astype(str), return_index=True)[1]) for each in (said, pictures))
    found = []
    for place in places.tolist():
        by_image = vectors[captions, 0] @ vectors[place, 1]
        by_caption = vectors[images, 1] @ vectors[place, 0]
        answers: list[ShownOutput] = [{"text": said[captions[n]], "score": float(by_image[n])} for n in _best(by_image)]
        nearest: list[ShownPicture] = [
            {**_picture(encoded[images[n]]), "hit": bool(pictures[images[n]] == pictures[place])}
            for n in _best(by_caption)
        ]
        own = _picture(encoded[place])
        shown: Shown = {"instruction": own["name"], "wanted": said[place], "answers": answers, "pictures": [own]}
        found.append(shown | {"nearest": nearest})
    return found


def _best(scores: np.ndarray) -> list[int]:
    best: list[int] = np.argsort(-scores, kind="stable")[:NEAREST].tolist()
    return best


def _picture(encoded: Encoded) -> ShownPicture:
    return shown_picture(encoded.example.images[0])
