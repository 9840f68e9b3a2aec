"""Text for the embedded backbone, which `scripts/films_pretraining_data.py` writes."""

import numpy as np

from instructrec_jax.preparation.films import catalogue, make_viewer
from instructrec_jax.preparation.films.texts import HERE, bare, facts, glossary, held_out_phrases
from instructrec_jax.preparation.films.wishes import ask


def quote(subject: str, rng: np.random.Generator) -> str:
    """One to six words in a row from the glossary's sentences on a subject; never with a held-out phrase in it."""
    while True:
        words = bare(str(rng.choice(glossary()[subject]))).split()
        size = int(rng.integers(1, 7))
        start = int(rng.integers(0, max(1, len(words) - size + 1)))
        text = " ".join([str(rng.choice(["with", "about", "where", "like"])), *words[start : start + size]])
        if not any(f" {phrase} " in f" {text} " for phrase in held_out_phrases()):
            return text


def pretraining_texts(*, seed: int = 0, requests: int = 6000) -> list[str]:
    """Text for the embedded backbone: film texts, the glossary, and requests in training wordings only."""
    films = facts()
    texts = catalogue().texts + [f["blurb"] for f in films]
    texts += (HERE / "glossary.txt").read_text(encoding="utf-8").splitlines()
    for number in range(requests):
        rng = np.random.default_rng([seed, number, 1])
        viewer = make_viewer("", rng)
        seen = rng.permutation(len(films))[: int(rng.integers(1, 6))]
        texts.append(ask(seen, viewer.themes, viewer.avoids, "train", rng).instruction)
    return texts
