"""Explanations as a page: words and patches of pictures, shaded by their scores."""

from collections.abc import Iterable

from instructrec_jax.answering.evidence import word_places
from instructrec_jax.data.media.drawing import data_uri, shown_values
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.evaluation.explained import ShadedPicture, ShadedText
from instructrec_jax.evaluation.report import environment
from instructrec_jax.explanation.explain import Explanation, PictureScores
from instructrec_jax.explanation.shown import heading


def page_of(explanations: Iterable[Explanation], reader: PixelReader | None) -> str:
    """HTML without scripts or requests, with a heat map over each picture.

    Args:
      reader: of the run's pictures; None: it reads none.
    """
    found = [{"heading": heading(each), "shaded": shaded(each, reader)} for each in explanations]
    return environment().get_template("explanations.html.jinja").render(explanations=found)


def shaded(explanation: Explanation, reader: PixelReader | None = None) -> ShadedText:
    """The text in pieces and its pictures, shaded by the scores of words and patches relative to the largest one."""
    e = explanation
    scores = {word.casefold(): score for word, score in zip(e.words, e.scores, strict=True) if score is not None}
    largest = max((abs(score) for score in e.parts if score is not None), default=0.0) or 1.0
    pieces: list[tuple[str, float | None]] = []
    end = 0
    for word, start, stop in word_places(e.text):
        pieces.append((e.text[end:start], None))
        score = scores.get(word.casefold())
        pieces.append((e.text[start:stop], None if score is None else score / largest))
        end = stop
    pieces.append((e.text[end:], None))
    found: ShadedText = {
        "target": e.target,
        "value": e.value,
        "unit": e.unit,
        "pieces": [each for each in pieces if each[0]],
    }
    if e.history:
        found["history"] = [(name, None if score is None else score / largest) for name, score in e.history]
    if reader is not None and e.pictures:
        found["pictures"] = [_picture(each, largest, reader) for each in e.pictures]
    return found


def _picture(scores: PictureScores, largest: float, reader: PixelReader) -> ShadedPicture:
    """The part of the picture that the patches cover."""
    rows, columns = len(scores.patches), len(scores.patches[0])
    values = shown_values(reader(scores.picture), reader.how)
    covered = values[: rows * scores.side, : columns * scores.side]
    shades = [None if score is None else score / largest for row in scores.patches for score in row]
    return {"name": scores.picture.name, "image": data_uri(covered), "columns": columns, "shades": shades}
