"""Phrases requests like the instructions that a run was trained on."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from instructrec_jax.files import check_type
from instructrec_jax.preparation import demos
from instructrec_jax.preparation.wording.wordings import load_wordings
from instructrec_jax.ranking.catalogue import Catalogue, load_card

# Templates that fit a wish in the form of a phrase as well as of a sentence.
PLAIN, HISTORY, BOTH = "matching-plain-next", "matching-recently", "matching-history-and-wish"
_CHINESE = re.compile("[\u3400-\u9fff]")
_ENDS = ".!?。！？…"


@dataclass(frozen=True)
class Wording:
    """The wording of a prepared folder's instructions.

    Attributes:
      texts: language -> templates for (no input, a history, a history and a wish), with {history} and {intention}.
      marks: language -> text before, between and after titles.
      titles: number of titles in an instruction, the last ones of the history.
      years: whether titles are followed by their years.
      always_told: whether instructions name the history even for a network that reads it as items.
      listing: joins titles into one phrase, instead of `marks`.
    """

    texts: dict[str, tuple[str, str, str]]
    marks: dict[str, tuple[str, str, str]]
    titles: int
    years: bool
    always_told: bool
    listing: Callable[[Sequence[str]], str] | None = None

    def prompt(self, catalogue: Catalogue, told: Sequence[int], wish: str) -> str:
        """The instruction for a history (item numbers, oldest first; all are named) and a wish.

        A wish without a history is the instruction. A Chinese wish gets a Chinese template.
        """
        language = "zh" if _CHINESE.search(wish) and "zh" in self.texts else "en"
        nothing, history, both = self.texts[language]
        names = [catalogue.name(item) if self.years else catalogue.titles[item] for item in told]
        if not names:
            return wish or nothing
        before, between, after = self.marks[language]
        listed = between.join(f"{before}{name}{after}" for name in names)
        if self.listing is not None:
            listed = self.listing(names)
        if wish and wish[-1] in _ENDS:
            both = both.replace("{intention}.", "{intention}").replace("{intention}。", "{intention}")
        # not str.format, because titles and wishes may contain braces
        parts = re.split(r"\{(history|intention)\}", both if wish else history)
        return "".join({"history": listed, "intention": wish}[p] if n % 2 else p for n, p in enumerate(parts))


class CardSettings(TypedDict, total=False):
    """The settings of a prepared folder, in its card, that shape its wording."""

    noun: str
    templates: str | None
    preferences: list[str]
    titles_in_prompt: int


def wording_of(folder: str | Path) -> Wording:
    """The wording of a prepared folder, by its card; without a card, the grammar's wording for generic items."""
    card = load_card(folder) if (Path(folder) / "card.json").is_file() else {}
    settings = check_type(card.get("settings", {}), CardSettings, f"{Path(folder) / 'card.json'}, settings")
    if demo := demos.demo_of(card):  # a demo has its own wording
        marks = {"en": ("", ", ", "")}
        return Wording(
            {"en": demo.instructions}, marks, demo.titles_in_prompt, years=False, always_told=True, listing=demo.listing
        )
    words = load_wordings()
    noun = settings.get("noun", "item")
    templates = settings.get("templates")
    if noun not in words.nouns and templates and Path(templates).exists():
        words = load_wordings(templates)
    nouns = words.nouns.get(noun, words.nouns["item"])
    template_texts = {template.name: template.texts for template in words.templates}

    def say(name: str, language: str) -> str:
        kept = {"history": "{history}", "intention": "{intention}"}
        return template_texts[name][language].format_map(nouns[language] | kept)

    texts = {lang: (say(PLAIN, lang), say(HISTORY, lang), say(BOTH, lang)) for lang in ("en", "zh")}
    marks = {"en": ("", "; ", ""), "zh": (nouns["zh"]["open"], "", nouns["zh"]["close"])}
    told = "preferences" in settings and "none" not in settings["preferences"]
    return Wording(texts, marks, settings.get("titles_in_prompt", 10), years=True, always_told=told)
