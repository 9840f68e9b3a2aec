"""The instruction grammar: preference x intention x task form, in words, from histories and a catalogue's facts.

After "Recommendation as Instruction Following" (Zhang et al. 2023, arXiv:2305.07001). Every wording and every rule is
this project's own: templates lie in `templates/`, what is said of items comes from `intentions.py`.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeVar

import numpy as np

from instructrec_jax.data.example import Example, suggest
from instructrec_jax.preparation.wording.intentions import Describer, Said, names_title
from instructrec_jax.preparation.wording.wordings import (
    INTENTIONS,
    LANGUAGES,
    PREFERENCES,
    WORDINGS,
    Template,
    Wordings,
    load_wordings,
    slots,
)
from instructrec_jax.ranking.catalogue import SPLITS, Catalogue, Splits

RANKING_FORMS = ("matching", "pointwise", "pairwise", "reranking")
TEXT_FORMS = ("request", "preference", "relatedness")  # their answer is a text, for language models
DRAWS = 50  # of a negative, before one that fits the request as well is taken for want of others

T = TypeVar("T")
Cell = tuple[str, str, str]  # form, preference, intention
PLAIN: Cell = ("matching", "none", "none")  # "What comes next?", for networks that see the history itself


@dataclass(kw_only=True)
class GrammarConfig:
    """Which instructions are made of histories. Of each list one entry is drawn per example."""

    preferences: list[str] = field(default_factory=lambda: ["implicit"])
    """what an instruction tells of a taste: none, implicit (titles of past items), explicit (a taste in words). With
    [none] here and in intentions it only asks what comes next, for networks that see the history itself"""
    intentions: list[str] = field(default_factory=lambda: ["none"])
    """what it asks for: none, vague (one fact of the wanted item, say its genre), specific (several facts)"""
    forms: list[str] = field(default_factory=lambda: ["matching"])
    """matching (name the item), pointwise (yes or no), pairwise, reranking (choose from a list); for language models
    also request (item to wish), preference (history to taste), relatedness (wish and item to history): texts"""
    languages: list[str] = field(default_factory=lambda: ["en"])
    """en, zh; titles and facts stay as they are in the catalogue"""
    noun: str = "item"
    """what items are called: film, game, book, product, item, or a noun of your own from `templates`"""
    templates: str | None = None
    """YAML file, or folder of them, with templates and words of your own beside the project's"""
    wordings: str = "both"
    """templates of the test split: train (the wordings that training uses), held_out (others), both (half and half);
    validation uses those of training, so that nothing is tuned on held-out wordings"""
    contexts: float = 0.0
    """share of instructions that begin with a sentence on time or occasion ("It is the weekend."); some of these are
    kept for items of a kind that suits them, and so are a hint"""
    negatives: int = 9
    """wrong candidates beside the right one in reranking, drawn uniformly from what the user never chose"""
    titles_in_prompt: int = 10
    """how many of the last titles an instruction names"""
    history_limit: int = 50
    """how many past items a training example keeps; validation and test keep all, to mask seen items"""
    examples_per_user: int | None = 50
    """training examples per user (null: every position)"""
    positions: str = "random"
    """which of a user's items these examples ask for, where there are more: random, or last. A network that learns from
    every place of a history needs one example of each user, the last"""
    seed: int = 0
    """draws training positions, templates, facts, negatives"""


def generate_examples(catalogue: Catalogue, splits: Splits, split: str, config: GrammarConfig) -> Iterator[Example]:
    """Instruction examples of one split: a function of its arguments alone.

    In train every item of a user but the first is a target once (or `examples_per_user` of them), with
    the last `history_limit` items before it as `history`. In validation and test each held-out item is a target and
    `history` is everything the user had before: an evaluator masks seen items with it. A user's first item of all is a
    target only where instructions without a preference are asked for.

    `output` is the target's id; yes or no (是 or 否) in pointwise; a text in the forms request, preference and
    relatedness. `candidates` are ids in the order of the prompt, which is shuffled. Negatives are never items of the
    user's own, in any split; without a preference, where the request is all there is to judge by, they do not fit the
    request either (while others are left). An instruction names its target only as a candidate.

    Where facts are too few for what was drawn, a specific intention becomes vague, vague none, an explicit preference
    implicit: `origin` tells what the instruction is, and in `drawn` what it was to be. Of an item and a history of
    which nothing can be said there is no example; these are counted in a warning at the end.

    origin: template, wording, form, preference, intention, language, variant (the columns in words), intention_text,
    context, split, user, target (an item id), position (of the target in the user's items), source (`user[first:end]`:
    the items of the user it was made of, the target included). User ids go to `origin` only.

    Raises:
      ValueError: settings that do not exist or do not go together, unusable template files, a cell without templates.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}.")
    return _Generator(catalogue, splits, split, config).examples()


def check_grammar(config: GrammarConfig) -> Wordings:
    """The words that the settings ask for. Raises what `generate_examples` raises for settings and template files."""
    allowed = {
        "preferences": PREFERENCES,
        "intentions": INTENTIONS,
        "forms": RANKING_FORMS + TEXT_FORMS,
        "languages": LANGUAGES,
    }
    for setting, choices in allowed.items():
        chosen = getattr(config, setting)
        if not chosen:
            raise ValueError(f"{setting} is empty: choose from {', '.join(choices)}.")
        for value in chosen:
            if value not in choices:
                hint = suggest(str(value), choices)
                raise ValueError(f"{setting}: {value!r} is unknown; there is {', '.join(choices)}.{hint}")
    if config.positions not in ("random", "last"):
        raise ValueError(f"positions must be random or last, got {config.positions!r}.")
    if config.wordings not in (*WORDINGS, "both"):
        raise ValueError(f"wordings must be train, held_out or both, got {config.wordings!r}.")
    for setting in ("titles_in_prompt", "history_limit", "examples_per_user", "negatives"):
        value = getattr(config, setting)
        if value is not None and value < 1:
            raise ValueError(f"{setting} must be at least 1, got {value}.")
    if not 0 <= config.contexts <= 1:
        raise ValueError(f"contexts is a share between 0 and 1, got {config.contexts}.")
    words = load_wordings(config.templates)
    words.noun(config.noun)
    for form in config.forms:
        for cell, split in product(_cells(form, config), SPLITS):
            for wording in _wordings(split, config):
                _templates(words, cell, wording)
    return words


class _Generator:
    def __init__(self, catalogue: Catalogue, splits: Splits, split: str, config: GrammarConfig):
        self.words = check_grammar(config)
        self.catalogue, self.splits, self.split, self.config = catalogue, splits, split, config
        self.describer = Describer(catalogue, self.words, config.noun)
        self.wordings = _wordings(split, config)
        self.cells = {form: _cells(form, config) for form in dict.fromkeys(config.forms)}
        self.fixed = {  # what the templates say themselves: a target is not to be named by chance
            (t.name, language): " ".join(part for part in _split(text) if part.strip())
            for t in self.words.templates
            for language, text in t.texts.items()
        }
        self.templates: dict[tuple[Cell, str], list[Template]] = {}

    def examples(self) -> Iterator[Example]:
        without_history = any(c[1] == "none" and c != PLAIN for cells in self.cells.values() for c in cells)
        first = 0 if without_history else 1
        count = unsaid = 0
        limit = self.config.examples_per_user
        for user in range(len(self.splits.user_ids)):
            rng = np.random.default_rng((self.config.seed, SPLITS.index(self.split), user))
            sequences = [getattr(self.splits, name)[user] for name in SPLITS]
            place = SPLITS.index(self.split)
            start, end = (sum(map(len, sequences[:stop])) for stop in (place, place + 1))
            items = np.concatenate(sequences)
            positions = np.arange(max(first, start), end)
            unsaid += self.split != "train" and start == 0 < first and end > 0
            if self.split == "train" and limit is not None and len(positions) > limit:
                last = self.config.positions == "last"
                positions = positions[-limit:] if last else np.sort(rng.choice(positions, limit, replace=False))
            own = set(items.tolist())
            for position in positions:
                example = self._example(user, items[: position + 1], own, rng, f"{self.split}-{count}")
                unsaid += example is None
                if example is not None:
                    count += 1
                    yield example
        if unsaid:
            warnings.warn(
                f"{unsaid} item(s) of the {self.split} split have no instruction: the catalogue's facts are too few "
                f"for the forms {', '.join(self.config.forms)}, or there is no history.",
                stacklevel=2,
            )

    def _example(
        self, user: int, items: np.ndarray, own: set[int], rng: np.random.Generator, name: str
    ) -> Example | None:
        """The example whose target is the last of `items`."""
        target, past = int(items[-1]), items[:-1]
        kept = past[-self.config.history_limit :]
        told_of = kept[kept != target]  # a choice may repeat, but its title is not given away
        language = _draw(self.config.languages, rng)
        drawn = self._draw_cell(bool(len(told_of)), rng)
        if drawn is None:
            return None
        form = drawn[0]
        told = self._told(drawn, target, told_of, language, rng)
        if told is None:
            return None
        cell, taste, wish = told
        template = self._template(cell, target, language, rng)

        # --- candidates ---
        right, size = True, {"pairwise": 1, "reranking": self.config.negatives}.get(form, 0)
        if form == "pointwise":
            right = bool(rng.random() < 0.5)
            size = 0 if right else 1
        alone = wish if cell[1] == "none" else None
        negatives = self._negatives(size, target, own, alone, rng) if size else []
        candidates = [*([target] if right else []), *negatives] if form in RANKING_FORMS[1:] else []
        candidates = [candidates[place] for place in rng.permutation(len(candidates))]

        # --- words ---
        said: dict[str, str] = dict(self.words.nouns[self.config.noun][language])
        shown = [self._title(item, language) for item in candidates] or [self._title(target, language)]
        said |= {"candidate": shown[0], "first": shown[0], "second": shown[-1]}
        said["candidates"] = "\n".join(f"- {title}" for title in shown)
        said["history"] = self._titles(told_of, language)
        said |= {"preference": taste.text} if taste else {}
        said |= {"intention": wish.text} if wish else {}
        context = self._context(target, language, rng) if form in RANKING_FORMS else ""
        instruction = context + template.texts[language].format_map(said)
        ids = self.catalogue.ids
        output: str = ids[target]
        if form == "pointwise":
            output = self.words.answers["yes" if right else "no"][language]
        elif form in TEXT_FORMS:
            output = said[{"request": "intention", "preference": "preference"}.get(form, "history")]

        history = kept if self.split == "train" else past
        end = len(items)
        first = end - 1 - max(len(kept[-self.config.titles_in_prompt :]), len(kept) if taste else 0)
        user_id = self.splits.user_ids[user]
        variant = [*(["titles"] if cell[1] == "implicit" else []), *(part.variant for part in (taste, wish) if part)]
        return Example(
            instruction=instruction,
            output=output,
            candidates=tuple(ids[item] for item in candidates),
            history=tuple(ids[item] for item in history),
            task="recommendation" if form in RANKING_FORMS else "recommendation_text",
            id=name,
            origin={
                "template": template.name,
                "variant": "; ".join(variant),
                "wording": template.wording,
                "form": form,
                "preference": cell[1],
                "intention": cell[2],
                "language": language,
                **({"intention_text": wish.text} if wish else {}),
                **({"context": context.strip()} if context else {}),
                **({"drawn": f"{drawn[1]} {drawn[2]}"} if drawn != cell else {}),
                "split": self.split,
                "user": user_id,
                "target": ids[target],
                "position": str(end - 1),
                "source": f"{user_id}[{first}:{end}]",
            },
        )

    def _draw_cell(self, has_history: bool, rng: np.random.Generator) -> Cell | None:
        possible = [
            usable
            for cells in self.cells.values()
            if (usable := [c for c in cells if has_history or (c[1] == "none" and c[0] != "relatedness")])
        ]
        return _draw(_draw(possible, rng), rng) if possible else None

    def _told(
        self, drawn: Cell, target: int, history: np.ndarray, language: str, rng: np.random.Generator
    ) -> tuple[Cell, Said | None, Said | None] | None:
        """What can be said for a cell: the cell it becomes, a taste, a wish; None where nothing can."""
        form, preference, intention = drawn
        title = self.catalogue.titles[target]
        taste = wish = None
        if form == "request":
            kind = _draw(INTENTIONS[1:], rng)
            wish = self.describer.intention(target, kind, language, rng)
            wish = wish or self.describer.intention(target, "vague", language, rng)
            return (drawn, None, wish) if wish else None
        if form == "preference":
            taste = self.describer.preference(history, language, rng)
            return (drawn, taste, None) if taste else None
        if preference == "explicit":
            taste = self.describer.preference(history, language, rng)
            if taste is None or names_title(taste.text, title):
                taste, preference = None, "implicit"
        while intention != "none":
            wish = self.describer.intention(target, intention, language, rng)
            if wish:
                break
            intention = "vague" if intention == "specific" else "none"
        if form == "relatedness" and not wish:
            return None
        if preference == "none" and intention == "none":
            if not len(history):
                return None
            if drawn != PLAIN:
                preference = "implicit"
        return (form, preference, intention), taste, wish

    def _template(self, cell: Cell, target: int, language: str, rng: np.random.Generator) -> Template:
        key = cell, _draw(self.wordings, rng)
        if key not in self.templates:
            self.templates[key] = _templates(self.words, *key)
        templates = self.templates[key]
        order = [templates[place] for place in rng.permutation(len(templates))]
        title = self.catalogue.titles[target]
        # A film called "It" or "Film" is in every sentence; then any will do.
        return next((t for t in order if not names_title(self.fixed[t.name, language], title)), order[0])

    def _negatives(
        self, size: int, target: int, own: set[int], wish: Said | None, rng: np.random.Generator
    ) -> list[int]:
        if len(self.catalogue) - len(own) < size:
            raise ValueError(
                f"a user has chosen {len(own)} of the {len(self.catalogue)} items, which leaves no {size} negatives: "
                "lower `negatives`, or leave out the forms with candidates."
            )
        taken = set(own)
        names = {self.catalogue.name(target)}
        chosen: list[int] = []
        tries = 0
        while len(chosen) < size:
            item = int(rng.integers(len(self.catalogue)))
            tries += 1
            strict = tries <= DRAWS * size
            if item in taken or (strict and self.catalogue.name(item) in names):
                continue  # two candidates of one name could not be told apart
            if strict and wish and self.describer.fits(item, wish.facts):
                continue
            taken.add(item)
            names.add(self.catalogue.name(item))
            chosen.append(item)
        return chosen

    def _context(self, target: int, language: str, rng: np.random.Generator) -> str:
        if rng.random() >= self.config.contexts:
            return ""
        kinds = {str(fact.value).lower() for fact in self.describer.kinds[target]}
        fitting = [
            context[language]
            for context in self.words.contexts.values()
            if ("suits" not in context or kinds & {kind.lower() for kind in context["suits"]})
            and not names_title(context[language], self.catalogue.titles[target])
        ]
        return _draw(fitting, rng) + (" " if language == "en" else "") if fitting else ""

    def _title(self, item: int, language: str) -> str:
        name = self.catalogue.name(item)
        noun = self.words.nouns[self.config.noun]["zh"]
        return f"{noun['open']}{name}{noun['close']}" if language == "zh" else name

    def _titles(self, items: np.ndarray, language: str) -> str:
        titles = [self._title(int(item), language) for item in items[-self.config.titles_in_prompt :]]
        return ("; " if language == "en" else "").join(titles)


def _cells(form: str, config: GrammarConfig) -> list[Cell]:
    wished = [intention for intention in config.intentions if intention != "none"]
    if form == "request":
        return [(form, "none", "none")]
    if form == "preference":
        return [(form, "implicit", "none")]
    if form == "relatedness":
        return [(form, "none", intention) for intention in wished or INTENTIONS[1:]]
    if form == "matching" and config.preferences == config.intentions == ["none"]:
        return [PLAIN]
    pairs = product(dict.fromkeys(config.preferences), dict.fromkeys(config.intentions))
    cells = [(form, *pair) for pair in pairs if pair != ("none", "none")]
    if not cells:
        raise ValueError(
            "an instruction with preference none and intention none says nothing: allow one of them, or the form "
            "matching alone (for networks that see the history itself)."
        )
    return cells


def _wordings(split: str, config: GrammarConfig) -> list[str]:
    return ["train"] if split != "test" else [*WORDINGS] if config.wordings == "both" else [config.wordings]


def _templates(words: Wordings, cell: Cell, wording: str) -> list[Template]:
    found = [t for t in words.templates if t.serves(*cell) and t.wording == wording]
    if not found:
        form, preference, intention = cell
        raise ValueError(
            f"there is no template of {wording} wording for form {form}, preference {preference}, intention "
            f"{intention}: add one in a file named by `templates`."
        )
    return found


def _split(text: str) -> list[str]:
    for slot in slots(text):
        text = text.replace("{" + slot + "}", "\n")
    return text.split("\n")


def _draw(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]
