"""Gathers titles, texts and facts of items line by line into a `Catalogue`."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from instructrec_jax.preparation.readers.lines import BadLines
from instructrec_jax.ranking.catalogue import Catalogue, Fact

NO_GENRES = ("(no genres listed)", "unknown", "")
# Columns with several names per cell, which become lists.
SEVERAL = ("genre", "genres", "class", "category", "categories", "tags", "authors")
# Columns added to the title in an item's text by default. Not tags, which serve as requests.
IN_TEXT = ("genre", "genres", "class", "category", "categories", "brand")

_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\s*(?:\d{4})?)?\)\s*(?:\((?:TV|V|VG|mini)\))?\s*$")
_ARTICLE = re.compile(
    r"^(a\.k\.a\.\s+)?(.+), (The|A|An|Le|La|Les|L'|Un|Une|Una|Il|Lo|Gli|El|Los|Las|"
    r"Der|Die|Das|Ein|Eine|De|Het|Den|Det)$"
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_LABELS = {"genre": "Genres", "class": "Genres", "category": "Categories"}
_FACT_NAMES = {"genre": "genres", "class": "genres", "id": "item_id", "title": "item_title", "text": "item_text"}


class Items:
    """Builds a catalogue item by item.

    Titles are treated the same for all readers: HTML entities become characters, a year in brackets at the end becomes
    the fact `year`, "Matrix, The" becomes "The Matrix".
    """

    def __init__(self, path: Path, bad: BadLines, text_columns: Sequence[str], *, dated: bool = False) -> None:
        """text_columns: facts added to the title in an item's text; dated: whether to keep `year` if all are None."""
        self.path, self.bad, self.text_columns, self.dated = path, bad, text_columns, dated
        self.titles: dict[str, str] = {}
        self.texts: list[str] = []
        self.years: list[int | None] = []
        self.facts: dict[str, list[Fact]] = {}

    def add(self, line: int, item: str, raw_title: str, facts: Mapping[str, Fact], year: int | None = None) -> None:
        """Adds an item with the same facts as the others; no id, no title or a duplicate id is a bad line."""
        title, in_title = split_title(plain(raw_title))
        if why := _fault(item, title, facts, self.titles):
            self.bad(self.path, line, why)
            return
        year = year if in_title is None else in_title
        facts = {name: plain_fact(value) for name, value in facts.items()}
        for name, value in facts.items():
            self.facts.setdefault(name, []).append(value)
        self.titles[item] = title
        self.years.append(year)
        self.texts.append(item_text(title, year, {label(n): facts[n] for n in self.text_columns if n in facts}))

    def catalogue(self) -> Catalogue:
        """The catalogue of the added items. Raises ValueError if there are none."""
        if not self.titles:
            why = f" ({self.bad.skipped[-1]})" if self.bad.skipped else ""
            raise ValueError(f"{self.path} holds no valid item{why}. Items are read as text, so each needs a title.")
        facts: dict[str, Sequence[Fact]] = {}
        if damaged := [name for name in self.facts if damage(name)]:
            raise ValueError(f"{self.path}: the column {damaged[0]!r} holds {damage(damaged[0])}.")
        for name, column in self.facts.items():
            new = _FACT_NAMES.get(name, name)
            taken = new != name and (new in self.facts or new in facts)
            facts[f"{name}_column" if taken else new] = column
        if self.dated or any(self.years):
            facts["year"] = self.years
        return Catalogue(list(self.titles), list(self.titles.values()), self.texts, facts)


def split_title(raw: str) -> tuple[str, int | None]:
    """("The Matrix", 1999) from "Matrix, The (1999)"; other brackets are kept."""
    year = _YEAR.search(raw)
    title = raw[: year.start()] if year else raw
    parts = re.split(r"\(([^()]*)\)", title)  # odd entries were in brackets
    turned = [_ARTICLE.sub(_article_first, part.strip()) for part in parts]
    for index, part in enumerate(parts):
        turned[index] = f"({turned[index]})" if index % 2 else part.replace(part.strip(), turned[index], 1)
    return "".join(turned).strip(), int(year[1]) if year else None


def item_text(title: str, year: int | None, details: Mapping[str, Fact]) -> str:
    """The text of an item: "The Matrix (1999). Genres: Action, Sci-Fi." Empty details are left out."""
    sentences = [f"{title} ({year})" if year else title]
    for name, value in details.items():
        text = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
        sentences += [f"{name}: {text}"] if text else []
    return " ".join(sentence if sentence[-1] in ".!?" else sentence + "." for sentence in sentences)


def plain(text: str) -> str:
    """A text with HTML entities as characters: "Q&amp;A" is "Q&A"."""
    # html.unescape of the whole text would also replace "&copy=1"
    return _ENTITY.sub(lambda match: html.unescape(match[0]), text) if "&" in text else text


def plain_fact(value: Fact) -> Fact:
    """A fact whose texts are `plain`."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return plain(value) if isinstance(value, str) else value


def label(column: str) -> str:
    """The name of a column in an item's text."""
    return _LABELS.get(column, column.replace("_", " ").capitalize())


def find_title(columns: Sequence[str], path: Path, asked: str | None) -> str:
    """The column with the title: `asked`, or the first of title, name, ..._title, ..._name."""
    if asked is not None:
        require_columns([asked], columns, path)
        return asked
    patterns = ("title", "name", ".*_title", ".*_name")
    found = [name for pattern in patterns for name in columns if re.fullmatch(pattern, name, re.IGNORECASE)]
    if not found:
        raise ValueError(
            f"{path} has no column for the title: its columns are {', '.join(columns)}. The backbone reads items as "
            "text; set `--title_column` to the column with their titles."
        )
    return found[0]


def require_columns(names: Iterable[str], columns: Sequence[str], path: Path) -> None:
    """Raises ValueError for a name that is not a column, with the columns."""
    if unknown := [name for name in names if name not in columns]:
        raise ValueError(f"{path} has no column {unknown[0]!r}; it has {', '.join(columns)}.")


def damage(text: str) -> str | None:
    """The reason why a text cannot be an id or a title, or None."""
    if "\x00" in text:
        return "a NUL character, so the file may be damaged"
    if _HALF_PAIR.search(text):
        return "half of a surrogate pair, which is not a character"
    return None


def _article_first(match: re.Match[str]) -> str:
    alias, title, article = match.groups()
    return f"{alias or ''}{article}{'' if article.endswith(chr(39)) else ' '}{title}"


def _fault(item: str, title: str, facts: Mapping[str, Fact], known: Mapping[str, str]) -> str | None:
    if not item.strip():
        return "empty item id"
    if item in known:
        return f"item {item!r} occurs twice"
    if not title:
        return f"item {item!r} has no title"
    if "\n" in title:
        return f"the title of item {item!r} spans several lines (an unclosed quote?)"
    if why := damage(item + title):
        return f"item {item!r} holds {why}"
    for name, value in facts.items():
        texts = value if isinstance(value, list) else [value]
        if why := damage("".join(text for text in texts if isinstance(text, str))):
            return f"{name} of item {item!r} holds {why}"
    return None
