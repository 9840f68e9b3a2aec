"""Lists of words by language: names and places of several locales, sentences, wordings; `lists/LANGUAGE.yaml`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TypedDict

from instructrec_jax.files import check_type
from instructrec_jax.metrics.language import CJK
from instructrec_jax.parsing import parse_yaml

LANGUAGES = ("en", "zh")
SHARE = 0.2  # of the letters of a Chinese text are Chinese


class _File(TypedDict):
    names: dict[str, list[str]]
    places: dict[str, list[str]]
    distractors: list[str]
    wordings: list[str]
    contractions: dict[str, str]
    negated: list[str]


@dataclass(frozen=True)
class Lists:
    """The words of a language.

    Attributes:
      names, places: locale -> words.
      distractors: sentences that say nothing about a text.
      wordings: other forms of an instruction, with `{instruction}` where its own words stand.
      contractions: long form -> short form, in lower case.
      negated: words that a negation stands at.
    """

    names: dict[str, list[str]]
    places: dict[str, list[str]]
    distractors: list[str]
    wordings: list[str]
    contractions: dict[str, str]
    negated: list[str]

    def slot(self, name: str) -> list[str]:
        """The words of a slot of templates: first_name, city or country; [] for another name."""
        if name == "first_name":
            return [word for words in self.names.values() for word in words]
        if name == "city":
            return [word for locale, words in self.places.items() if locale != "countries" for word in words]
        return self.places["countries"] if name == "country" else []


@cache
def lists_of(language: str) -> Lists:
    place = files("instructrec_jax.robustness") / "lists" / f"{language}.yaml"
    found = parse_yaml(place.read_text(encoding="utf-8"), place.name)
    return Lists(**check_type(found, _File, place.name))


def language_of(texts: Sequence[str]) -> str:
    """ "zh" where more than a fifth of the letters of some texts are Chinese, else "en"."""
    text = "".join(texts)
    letters = sum(sign.isalpha() for sign in text)
    return "zh" if len(CJK.findall(text)) > SHARE * letters else "en"
