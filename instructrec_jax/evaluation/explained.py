"""explanations.json: what `evaluate --explanations` writes, and the report shows."""

from typing import NotRequired, TypedDict


class MeasuredMethod(TypedDict):
    """A method of explanation: its values and their differences to random orders as text, and whether it beats them."""

    name: str
    comprehensiveness: str
    more: str
    sufficiency: str
    less: str
    beats_random: bool


class ShadedPicture(TypedDict):
    """A picture as the network reads it, a data URI, and the shades of its patches, row by row."""

    name: str
    image: str
    columns: int
    shades: list[float | None]


class ShadedText(TypedDict):
    """An explained text: its pieces in order, each with a shade from −1 to 1; null: a piece of no word.

    `history`: the items that were read, oldest first, with their shades.
    """

    target: str
    value: float
    unit: str
    pieces: list[tuple[str, float | None]]
    pictures: NotRequired[list[ShadedPicture]]
    history: NotRequired[list[tuple[str, float | None]]]


class PushingWord(TypedDict):
    """A word's mean score over the texts that have it."""

    word: str
    score: float
    texts: int


class PushedTarget(TypedDict):
    """The words with the largest mean scores for one predicted target, either way."""

    target: str
    words: list[PushingWord]


class Explanations(TypedDict):
    """See `explanation.overview`. `method` is that of texts and targets; without it none beats random orders.

    unconverged: texts whose integrated gradients have a completeness error above 1%.
    """

    texts_measured: int
    random: tuple[str, str]
    methods: list[MeasuredMethod]
    method: NotRequired[str]
    unconverged: int
    texts: list[ShadedText]
    targets: list[PushedTarget]
