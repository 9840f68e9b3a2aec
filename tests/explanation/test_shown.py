"""An explanation on a terminal: the largest scores first, and what was not read or did not converge."""

from dataclasses import replace

from instructrec_jax.explanation.explain import Explanation
from instructrec_jax.explanation.shown import shown

FOUND = Explanation(
    "dull but good",
    "integrated",
    "good",
    "bad",
    "logit",
    1.5,
    ("dull", "but", "good"),
    (-1.0, 0.0, 2.0),
    "mask",
    0.004,
    16,
    True,
)


def test_words_have_bars() -> None:
    lines = shown(FOUND).splitlines()
    said = (
        "why 'good' and not 'bad' (logit +1.500), by integrated gradients from mask: 16 steps, completeness error 0.4%"
    )
    assert " ".join(map(str.strip, lines[1:3])) == said
    assert lines[3:] == [f"  good     +2.000  {'█' * 20}", f"  dull     −1.000  {'░' * 10}", "  but      +0.000"]


def test_doubts_are_said() -> None:
    said = shown(replace(FOUND, converged=False, completeness_error=0.2, unread=("war",), scores=(None, 1.0, 2.0)))
    assert "did NOT converge" in said and "not read: war" in said and "cannot be read without: dull" in said
