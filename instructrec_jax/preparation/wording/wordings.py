"""Reads and checks the templates and the vocabulary of generated instructions.

The project's files are in `templates/`; they, and files that users add, are YAML mappings with `cells` (templates by
form, preference and intention, explained at the top of matching.yaml) or sections of words.yaml.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter

from instructrec_jax.data.example import suggest
from instructrec_jax.parsing import read_yaml

FOLDER = Path(__file__).parent / "templates"
LANGUAGES = ("en", "zh")
PREFERENCES = ("none", "implicit", "explicit")
INTENTIONS = ("none", "vague", "specific")
WORDINGS = ("train", "held_out")
# Form -> slots of its templates, beside those of preference and intention.
FORMS: Mapping[str, frozenset[str]] = {
    "matching": frozenset(),
    "pointwise": frozenset({"candidate"}),
    "pairwise": frozenset({"first", "second"}),
    "reranking": frozenset({"candidates"}),
    "request": frozenset({"candidate"}),
    "preference": frozenset(),
    "relatedness": frozenset({"candidate"}),
    "tags": frozenset({"tags"}),
}
_CONTENT = frozenset({"history", "preference", "intention"}).union(*FORMS.values())
# Section of words.yaml -> (required keys, optional keys) of its entries.
_SECTIONS: Mapping[str, tuple[set[str], set[str]]] = {
    "nouns": ({"en", "zh"}, {"genre_nouns"}),
    "facts": (set(), {"kind", "en", "zh", "words"}),
    "kinds": ({"as", "zh"}, {"one", "many"}),
    "phrases": ({"en", "zh"}, set()),
    "contexts": ({"name", "en", "zh"}, {"suits"}),
    "answers": ({"en", "zh"}, set()),
}


@dataclass(frozen=True)
class Template:
    """A template of a cell of the grammar, in all languages. `intention` may be "any": vague or specific."""

    name: str
    form: str
    preference: str
    intention: str
    wording: str
    texts: Mapping[str, str]
    """language -> text with {slots}"""

    def serves(self, form: str, preference: str, intention: str) -> bool:
        same = self.intention == intention or (self.intention == "any" and intention in ("vague", "specific"))
        return self.form == form and self.preference == preference and same


@dataclass(frozen=True)
class FactRule:
    """How a column of the catalogue is put into words.

    Attributes:
      kind: whether its values are kinds of items, named by `Wordings.kinds`.
      words: whether its values are running text, of which single words are used.
      texts: language -> phrase with {value}.
    """

    kind: bool
    words: bool
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Context:
    """A sentence on time or occasion, by language; `suits`: only items of these kinds (None: all)."""

    texts: Mapping[str, str]
    suits: tuple[str, ...] | None


@dataclass
class Wordings:
    """Templates and vocabulary, with names as in words.yaml."""

    templates: list[Template] = field(default_factory=list)
    nouns: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    """name -> language -> form -> word"""
    genre_nouns: set[str] = field(default_factory=set)
    """the nouns whose kinds may stand for them: "a comedy" for a film"""
    facts: dict[str, FactRule] = field(default_factory=dict)
    kinds: dict[str, dict[str, str]] = field(default_factory=dict)
    phrases: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """name -> language -> alternatives"""
    contexts: dict[str, Context] = field(default_factory=dict)
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    stop_words: set[str] = field(default_factory=set)
    stop_kinds: set[str] = field(default_factory=set)

    def noun(self, name: str) -> dict[str, dict[str, str]]:
        if name not in self.nouns:
            raise ValueError(
                f"unknown noun {name!r}; choose {', '.join(self.nouns)}, or define it under `nouns` in the file of the "
                f"setting `templates`.{suggest(name, self.nouns)}"
            )
        return self.nouns[name]


def load_wordings(extra: str | Path | None = None) -> Wordings:
    """The project's wordings, and those of a user's YAML file or folder of YAML files.

    Raises:
      ValueError: invalid YAML, an unknown key or slot, a missing slot or language, a duplicate template name; names the
        file and the template.
    """
    paths = sorted(FOLDER.glob("*.yaml"))
    if extra is not None:
        own = Path(extra)
        found = sorted(p for p in own.iterdir() if p.suffix in (".yaml", ".yml")) if own.is_dir() else [own]
        if not found or not found[0].is_file():
            raise ValueError(f"templates: {own} is neither a YAML file nor a folder with YAML files.")
        paths += found
    wordings = Wordings()
    cells: list[tuple[Path, object]] = []
    for path in paths:
        cells += [(path, cell) for cell in _read(path, wordings)]
    where: dict[str, Path] = {}
    for path, cell in cells:  # after all files are read, because nouns define slots
        for template in _cell(path, cell, wordings):
            if template.name in where:
                raise ValueError(f"{path}: template {template.name!r} is also in {where[template.name]}: rename one.")
            where[template.name] = path
            wordings.templates.append(template)
    return wordings


def slots(text: str) -> list[str]:
    """The names in braces, in order."""
    return [name for _, name, _, _ in Formatter().parse(text) if name is not None]


def _read(path: Path, wordings: Wordings) -> list[object]:
    """Adds a file's words to `wordings`; returns its cells."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a mapping with `cells` (templates) or sections such as `nouns`.")
    known = ["cells", *_SECTIONS, "stop_words", "stop_kinds"]
    for section, entries in content.items():
        _known(section, known, str(path))
        place = f"{path}: {section}"
        if section == "stop_words":
            wordings.stop_words |= set(_text(entries, place).lower().split())
        elif section == "stop_kinds":
            wordings.stop_kinds |= {str(kind) for kind in _list(entries, place)}
        elif section == "contexts":
            for entry in _list(entries, place):
                name = str(entry.get("name") if isinstance(entry, dict) else entry)
                _add(wordings, section, name, _entry(section, entry, f"{place}: {name}"), f"{place}: {name}")
        elif section != "cells":
            if not isinstance(entries, dict):
                raise ValueError(f"{place} must map names to entries, found {entries!r}.")
            for name, entry in entries.items():
                _add(wordings, section, str(name), _entry(section, entry, f"{place}: {name}"), f"{place}: {name}")
    return _list(content.get("cells") or [], f"{path}: cells")


def _entry(section: str, entry: object, place: str) -> dict[str, object]:
    """An entry of a section, with the keys that it must and may have."""
    must, may = _SECTIONS[section]
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected the keys {', '.join(sorted(must | may))}, found {entry!r}.")
    for key in entry:
        _known(key, sorted(must | may), place)
    if missing := must - set(entry):
        raise ValueError(f"{place}: {', '.join(sorted(missing))} is missing.")
    return entry


def _add(wordings: Wordings, section: str, name: str, entry: dict[str, object], place: str) -> None:
    """Adds a checked entry to its section."""
    if section == "nouns":
        wordings.nouns[name] = {language: _noun(entry[language], language, place) for language in LANGUAGES}
        wordings.genre_nouns -= {name}
        wordings.genre_nouns |= {name} if entry.get("genre_nouns") else set()
    elif section == "facts":
        wordings.facts[name] = _fact_rule(entry, place)
    elif section == "kinds":
        forms = {key: value for key, value in entry.items() if value not in (None, "")}
        wordings.kinds[name] = {key: _text(value, f"{place}: {key}") for key, value in forms.items()}
    elif section == "phrases":
        wordings.phrases[name] = {
            language: [_text(each, f"{place}: {language}") for each in _list(entry[language], f"{place}: {language}")]
            for language in LANGUAGES
        }
    elif section == "contexts":
        suits = None
        if "suits" in entry:
            suits = tuple(_text(kind, f"{place}: suits") for kind in _list(entry["suits"], f"{place}: suits"))
        wordings.contexts[name] = Context(_in_languages(entry, place), suits)
    else:
        wordings.answers[name] = _in_languages(entry, place)


def _noun(forms: object, language: str, place: str) -> dict[str, str]:
    """The forms of a noun in a language, which may be empty texts."""
    needed = {"en": "a_noun noun nouns do did doing", "zh": "noun measure do genre open close"}[language].split()
    if not isinstance(forms, dict) or set(forms) != set(needed):
        raise ValueError(f"{place}: {language} must have the keys {', '.join(needed)}.")
    for key, word in forms.items():
        if not isinstance(word, str):
            raise ValueError(f"{place}: {language}: {key} must be a text, found {word!r}.")
    return forms


def _fact_rule(entry: Mapping[str, object], place: str) -> FactRule:
    kind = bool(entry.get("kind"))
    texts = {} if kind else _in_languages(entry, place)
    for language, text in texts.items():
        if slots(text) != ["value"]:
            raise ValueError(f"{place}: {language} must hold the slot {{value}} once.")
    return FactRule(kind, bool(entry.get("words")), texts)


def _in_languages(entry: Mapping[str, object], place: str) -> dict[str, str]:
    return {language: _text(entry.get(language), f"{place}: {language}") for language in LANGUAGES}


def _cell(path: Path, cell: object, wordings: Wordings) -> Iterator[Template]:
    if not isinstance(cell, dict):
        raise ValueError(f"{path}: a cell must be a mapping, found {cell!r}.")
    for key in cell:
        _known(key, ["form", "preference", "intention", "templates"], f"{path}: a cell")
    choices = {"form": list(FORMS), "preference": PREFERENCES, "intention": (*INTENTIONS, "any")}
    place = f"{path}: cell {' '.join(str(cell.get(key)) for key in choices)}"
    for key, allowed in choices.items():
        if cell.get(key) not in allowed:
            raise ValueError(f"{place}: {key} must be one of {', '.join(allowed)}.")
    form, preference, intention = (str(cell[key]) for key in choices)
    needed = set(FORMS[form])
    needed |= {"implicit": {"history"}, "explicit": {"preference"}}.get(preference, set())
    needed |= {"intention"} if intention != "none" else set()
    for entry in _list(cell.get("templates"), f"{place}: templates"):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{place}: a template without `name`: {entry!r}.")
        name = f"{path}: template {entry['name']!r}"
        for key in entry:
            _known(key, ["name", "wording", *LANGUAGES], name)
        if entry.get("wording", "train") not in WORDINGS:
            raise ValueError(f"{name}: wording must be train or held_out, found {entry['wording']!r}.")
        texts = {}
        for language in LANGUAGES:
            if language not in entry:
                raise ValueError(f"{name}: the language {language} is missing: add `{language}: ...`.")
            words = {slot for noun in wordings.nouns.values() for slot in noun[language]} - {"open", "close", "genre"}
            texts[language] = _text(entry[language], f"{name}: {language}")
            _check_slots(texts[language], needed, words, f"{name}: {language}")
        yield Template(entry["name"], form, preference, intention, entry.get("wording", "train"), texts)


def _check_slots(text: str, needed: set[str], words: set[str], place: str) -> None:
    try:
        found = slots(text)
    except ValueError as error:
        raise ValueError(
            f"{place}: unmatched braces ({error}): write a slot as {{name}}, literal braces as {{{{ and }}}}."
        ) from None
    for slot in found:
        if slot not in _CONTENT | words:
            _known(slot, sorted(needed | words), f"{place}: slot", "unknown slot")
        if slot in _CONTENT - needed:
            raise ValueError(
                f"{place}: the slot {{{slot}}} is not allowed in this cell, whose slots are {sorted(needed)}."
            )
    for slot in sorted(needed):
        if found.count(slot) != 1:
            raise ValueError(f"{place}: the slot {{{slot}}} must occur once, found {found.count(slot)} times.")
    if re.search(r"\{[^{}]*[:!.\[]", text):
        raise ValueError(f"{place}: a slot is a plain name in braces: {text!r}.")


def _known(name: object, known: list[str], place: str, what: str = "unknown key") -> None:
    if name not in known:
        hint = suggest(str(name), known)
        raise ValueError(f"{place}: {what} {name!r}; known are {', '.join(known)}.{hint}")


def _list(value: object, place: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{place} must be a list, found {value!r}.")
    return value


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} must be a text, found {value!r}.")
    return value
