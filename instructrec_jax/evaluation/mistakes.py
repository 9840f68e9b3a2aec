"""The wrong answers that are given most, with pictures of cases that got them."""

from collections.abc import Mapping, Sequence

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import render
from instructrec_jax.evaluation.tables import Mistake
from instructrec_jax.tasks.answers import shown_picture
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.tasks.scores import Scores

MOST = 8  # mistakes that are shown
EACH = 3  # pictures of one


def mistakes_of(scores: Mapping[str, Scores], groups: Mapping[str, Sequence[Encoded]]) -> list[Mistake]:
    """The most frequent pairs of target and wrong answer of cases with pictures, the most frequent first.

    Nothing where cases have no pictures, or answers are no texts.

    Args:
      scores, groups: by segment: the scores of its cases, and these.
    """
    found: dict[tuple[str, str], list[Example]] = {}
    for name, cases in groups.items():
        records = scores[name].predictions
        if not len(cases) or len(records) != len(cases) or not cases[0].example.images:
            continue
        for number, record in enumerate(records):
            pair = _said(record.get("reference")), _said(record.get("prediction"))
            if all(pair) and pair[0] != pair[1]:
                found.setdefault(pair, []).append(cases[number].example)
    most = sorted(found.items(), key=lambda each: (-len(each[1]), each[0]))[:MOST]
    return [_mistake(*pair, examples) for pair, examples in most]


def _said(value: object) -> str:
    """The text of a target or an answer, of several texts the first; "" for anything else."""
    first = value[0] if isinstance(value, list) and len(value) == 1 else value
    return first if isinstance(first, str) else ""


def _mistake(reference: str, prediction: str, examples: Sequence[Example]) -> Mistake:
    asked = render(examples[0])
    shown = [shown_picture(picture) for example in examples[:EACH] for picture in example.images[:1]]
    mistake: Mistake = {
        "reference": reference,
        "prediction": prediction,
        "count": len(examples),
        "pictures": shown[:1] if asked else shown,
    }
    return mistake | {"instruction": asked} if asked else mistake
