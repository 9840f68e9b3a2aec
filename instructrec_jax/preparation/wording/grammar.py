"""The instruction grammar: preference x intention x task form, generated from histories and a catalogue's facts.

After "Recommendation as Instruction Following" (Zhang et al. 2023, arXiv:2305.07001). The wordings and rules are this
project's own: templates are in `templates/`, descriptions of items and histories come from `intentions.py`.
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
TEXT_FORMS = ("request", "preference", "relatedness")  # the output is a text, for language models
DRAWS = 50  # draws of a negative before one that also fits the request is accepted

T = TypeVar("T")
Cell = tuple[str, str, str]  # form, preference, intention
PLAIN: Cell = ("matching", "none", "none")  # "What comes next?", for networks whose input includes the history


@dataclass(kw_only=True)
class GrammarConfig:
    """Settings of generated instructions. Of each list, one entry is drawn per example."""

    preferences: list[str] = field(default_factory=lambda: ["implicit"])
    """preference in the instruction: none, implicit (titles of past items), explicit (in words). With [none] here and
    for intentions, the instruction only asks for the next item, for networks whose input includes the history"""
    intentions: list[str] = field(default_factory=lambda: ["none"])
    """request in the instruction: none, vague (one fact of the target item, say its genre), specific (several facts)"""
    forms: list[str] = field(default_factory=lambda: ["matching"])
    """matching (name the item), pointwise (yes or no), pairwise, reranking (choose from a list); for language models
    also the texts request (from item), preference (from history), relatedness (history from request and item)"""
    languages: list[str] = field(default_factory=lambda: ["en"])
    """en, zh; titles and facts are not translated"""
    noun: str = "item"
    """noun for items: film, game, book, product, item, or a noun defined in `templates`"""
    templates: str | None = None
    """YAML file, or folder of them, with additional templates and words"""
    wordings: str = "both"
    """templates of the test split: train (those of training), held_out (others), both (half and half); validation uses
    those of training, so that nothing is tuned on unseen phrasings"""
    contexts: float = 0.0
    """share of instructions that start with a sentence on time or occasion ("It is the weekend."); some sentences are
    used only with suitable kinds of items, and so are a hint"""
    negatives: int = 9
    """negatives in reranking, drawn uniformly from items without an interaction of the user"""
    titles_in_prompt: int = 10
    """maximum number of past titles in an instruction, the most recent"""
    history_limit: int = 50
    """maximum number of past items of a training example; validation and test keep all, to mask seen items"""
    examples_per_user: int | None = 50
    """training examples per user (null: one per position)"""
    positions: str = "random"
    """targets of these examples if a user has more items: random, or last. A network that learns from every position of
    a history needs one example per user: the last"""
    seed: int = 0
    """for training positions, templates, facts and negatives"""


def generate_examples(catalogue: Catalogue, splits: Splits, split: str, config: GrammarConfig) -> Iterator[Example]:
    """Instruction examples of one split, determined by the arguments.

    In train, every item of a user except the first is a target once (or `examples_per_user` of them), with the last
    `history_limit` items before it as `history`. In validation and test, each held-out item is a target, and `history`
    holds all earlier items, for the mask of seen items. A user's very first item is a target only in instructions
    without a preference.

    `output` is the target's id; yes or no (是 or 否) in pointwise; a text in the forms request, preference and
    relatedness. `candidates` are ids in the shuffled order of the prompt. Negatives are never the user's items, of any
    split; without a preference, they do not fit the request either (unless no others are left). An instruction names
    its target only as a candidate.

    With too few facts, a specific intention becomes vague, a vague one none, and an explicit preference implicit:
    `origin` has the result, and in `drawn` the original draw. Targets without any facts or history give no example;
    a warning at the end counts them.

    origin: template, wording, form, preference, intention, language, variant (the columns used), intention_text,
    context, split, user, target (an item id), position (of the target in the user's items), source (`user[first:end]`:
    the user's items that were used, with the target). User ids are in `origin` only.

    Raises:
      ValueError: unknown or contradictory settings, invalid template files, a cell without templates.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}.")
    return _all_examples(ExampleWriter(catalogue, split, config), splits)


def every_position_gives(config: GrammarConfig) -> bool:
    """Whether each position of a user gives an example with these settings, whatever the facts are."""
    cells = [cell for form in config.forms for cell in _cells(form, config)]
    return set(config.forms) <= set(RANKING_FORMS) and all(cell[1] != "none" or cell == PLAIN for cell in cells)


def example_counts(
    train: np.ndarray, validation: np.ndarray, test: np.ndarray, split: str, config: GrammarConfig
) -> np.ndarray:
    """The number of examples of each user, int [users], where `every_position_gives`.

    Args:
      train, validation, test: each user's interactions in the splits.
    """
    sizes = (train, validation, test)
    place = SPLITS.index(split)
    before = sum(sizes[:place], np.zeros_like(train))
    counts = np.maximum(before + sizes[place] - np.maximum(before, 1), 0)
    most = config.examples_per_user
    return np.minimum(counts, most) if split == "train" and most is not None else counts


def check_grammar(config: GrammarConfig) -> Wordings:
    """The wordings of the settings. Raises ValueError for settings and template files like `generate_examples`."""
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
                raise ValueError(f"{setting}: {value!r} is unknown; choose from {', '.join(choices)}.{hint}")
    if config.positions not in ("random", "last"):
        raise ValueError(f"positions must be random or last, got {config.positions!r}.")
    if config.wordings not in (*WORDINGS, "both"):
        raise ValueError(f"wordings must be train, held_out or both, got {config.wordings!r}.")
    for setting in ("titles_in_prompt", "history_limit", "examples_per_user", "negatives"):
        value = getattr(config, setting)
        if value is not None and value < 1:
            raise ValueError(f"{setting} must be at least 1, got {value}.")
    if not 0 <= config.contexts <= 1:
        raise ValueError(f"contexts must be a share between 0 and 1, got {config.contexts}.")
    words = load_wordings(config.templates)
    words.noun(config.noun)
    for form in config.forms:
        for cell, split in product(_cells(form, config), SPLITS):
            for wording in _wordings(split, config):
                _templates(words, cell, wording)
    return words


@dataclass(frozen=True)
class _Plan:
    """The content of an example: its cell, preference and request in words, and language."""

    cell: Cell
    drawn: Cell  # the cell before facts turned out to be too few
    taste: Said | None
    wish: Said | None
    language: str

    @property
    def form(self) -> str:
        return self.cell[0]


class ExampleWriter:
    """Writes the examples of one split, user by user. The arguments are those of `generate_examples`."""

    def __init__(self, catalogue: Catalogue, split: str, config: GrammarConfig):
        self.words = check_grammar(config)
        self.catalogue, self.split, self.config = catalogue, split, config
        self.describer = Describer(catalogue, self.words, config.noun)
        self.wordings = _wordings(split, config)
        self.cells = {form: _cells(form, config) for form in dict.fromkeys(config.forms)}
        self.fixed = {  # fixed texts of the templates, which must not contain a target's title by chance
            (t.name, language): " ".join(part for part in _split(text) if part.strip())
            for t in self.words.templates
            for language, text in t.texts.items()
        }
        self.templates: dict[tuple[Cell, str], list[Template]] = {}
        without_history = any(c[1] == "none" and c != PLAIN for cells in self.cells.values() for c in cells)
        self.first = 0 if without_history else 1  # a user's first position that is a target

    def of_user(self, user: int, user_id: str, sequences: Sequence[np.ndarray], count: int) -> Iterator[Example | None]:
        """The examples of one user; None where there are too few facts. They depend on nothing but the arguments.

        Args:
          user: number of the user.
          sequences: the user's items in train, validation and test.
          count: examples of earlier users, for the ids.
        """
        place, limit = SPLITS.index(self.split), self.config.examples_per_user
        rng = np.random.default_rng((self.config.seed, place, user))
        start, end = (sum(map(len, sequences[:stop])) for stop in (place, place + 1))
        items = np.concatenate(sequences)
        positions = np.arange(max(self.first, start), end)
        if self.split != "train" and start == 0 < self.first and end > 0:
            yield None  # nothing comes before it
        if self.split == "train" and limit is not None and len(positions) > limit:
            last = self.config.positions == "last"
            positions = positions[-limit:] if last else np.sort(rng.choice(positions, limit, replace=False))
        own = set(items.tolist())
        for position in positions:
            example = self._example(user_id, items[: position + 1], own, rng, f"{self.split}-{count}")
            count += example is not None
            yield example

    def _example(
        self, user_id: str, items: np.ndarray, own: set[int], rng: np.random.Generator, name: str
    ) -> Example | None:
        """The example whose target is the last of `items`."""
        target, past = int(items[-1]), items[:-1]
        kept = past[-self.config.history_limit :]
        shown = kept[kept != target]  # an earlier interaction with the target would give its title away
        plan = self._plan(target, shown, rng)
        if plan is None:
            return None
        template = self._template(plan.cell, target, plan.language, rng)
        candidates, right = self._candidates(plan, target, own, rng)
        values = self._slot_values(plan, target, shown, candidates)
        context = self._context(target, plan.language, rng) if plan.form in RANKING_FORMS else ""
        ids = self.catalogue.ids
        output: str = ids[target]
        if plan.form == "pointwise":
            output = self.words.answers["yes" if right else "no"][plan.language]
        elif plan.form in TEXT_FORMS:
            output = values[{"request": "intention", "preference": "preference"}.get(plan.form, "history")]
        end = len(items)
        first = end - 1 - max(len(kept[-self.config.titles_in_prompt :]), len(kept) if plan.taste else 0)
        return Example(
            instruction=context + template.texts[plan.language].format_map(values),
            output=output,
            candidates=tuple(ids[item] for item in candidates),
            history=tuple(ids[item] for item in (kept if self.split == "train" else past)),
            task="recommendation" if plan.form in RANKING_FORMS else "recommendation_text",
            id=name,
            origin={
                **_origin(plan, template, context),
                "split": self.split,
                "user": user_id,
                "target": ids[target],
                "position": str(end - 1),
                "source": f"{user_id}[{first}:{end}]",
            },
        )

    def _plan(self, target: int, history: np.ndarray, rng: np.random.Generator) -> _Plan | None:
        """Draws language and cell, and the words for them; None if there are too few facts."""
        language = _draw(self.config.languages, rng)
        drawn = self._draw_cell(bool(len(history)), rng)
        told = None if drawn is None else self._told(drawn, target, history, language, rng)
        if drawn is None or told is None:
            return None
        cell, taste, wish = told
        return _Plan(cell, drawn, taste, wish, language)

    def _candidates(self, plan: _Plan, target: int, own: set[int], rng: np.random.Generator) -> tuple[list[int], bool]:
        """The shuffled candidates ([] for matching and texts), and whether the target is the right answer."""
        right, size = True, {"pairwise": 1, "reranking": self.config.negatives}.get(plan.form, 0)
        if plan.form == "pointwise":
            right = bool(rng.random() < 0.5)
            size = 0 if right else 1
        alone = plan.wish if plan.cell[1] == "none" else None
        negatives = self._negatives(size, target, own, alone, rng) if size else []
        candidates = [*([target] if right else []), *negatives] if plan.form in RANKING_FORMS[1:] else []
        return [candidates[place] for place in rng.permutation(len(candidates))], right

    def _slot_values(self, plan: _Plan, target: int, history: np.ndarray, candidates: Sequence[int]) -> dict[str, str]:
        """Slot -> text, for the template."""
        values: dict[str, str] = dict(self.words.nouns[self.config.noun][plan.language])
        titles = [self._title(item, plan.language) for item in candidates] or [self._title(target, plan.language)]
        values |= {"candidate": titles[0], "first": titles[0], "second": titles[-1]}
        values["candidates"] = "\n".join(f"- {title}" for title in titles)
        values["history"] = self._titles(history, plan.language)
        values |= {"preference": plan.taste.text} if plan.taste else {}
        values |= {"intention": plan.wish.text} if plan.wish else {}
        return values

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
        """The cell that the facts allow, and the preference and request in words; None if there are too few facts."""
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
        # If the title ("It", "Film") is in every template, use any.
        return next((t for t in order if not names_title(self.fixed[t.name, language], title)), order[0])

    def _negatives(
        self, size: int, target: int, own: set[int], wish: Said | None, rng: np.random.Generator
    ) -> list[int]:
        if len(self.catalogue) - len(own) < size:
            raise ValueError(
                f"a user has interactions with {len(own)} of the {len(self.catalogue)} items, which leaves fewer than "
                f"{size} negatives: lower `negatives`, or remove the forms with candidates."
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
                continue  # candidates need distinct names
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
            context.texts[language]
            for context in self.words.contexts.values()
            if (context.suits is None or kinds & {kind.lower() for kind in context.suits})
            and not names_title(context.texts[language], self.catalogue.titles[target])
        ]
        return _draw(fitting, rng) + (" " if language == "en" else "") if fitting else ""

    def _title(self, item: int, language: str) -> str:
        name = self.catalogue.name(item)
        noun = self.words.nouns[self.config.noun]["zh"]
        return f"{noun['open']}{name}{noun['close']}" if language == "zh" else name

    def _titles(self, items: np.ndarray, language: str) -> str:
        titles = [self._title(int(item), language) for item in items[-self.config.titles_in_prompt :]]
        return ("; " if language == "en" else "").join(titles)


def _all_examples(writer: ExampleWriter, splits: Splits) -> Iterator[Example]:
    count = unsaid = 0
    for user, user_id in enumerate(splits.user_ids):
        sequences = [getattr(splits, name)[user] for name in SPLITS]
        for example in writer.of_user(user, user_id, sequences, count):
            if example is None:
                unsaid += 1
            else:
                count += 1
                yield example
    if unsaid:
        warnings.warn(
            f"{unsaid} item(s) of the {writer.split} split have no instruction, because they have too few facts for "
            f"the forms {', '.join(writer.config.forms)}, or no history.",
            stacklevel=3,
        )


def _origin(plan: _Plan, template: Template, context: str) -> dict[str, str]:
    """The part of `Example.origin` that describes the wording."""
    variant = ["titles"] if plan.cell[1] == "implicit" else []
    variant += [part.variant for part in (plan.taste, plan.wish) if part]
    return {
        "template": template.name,
        "variant": "; ".join(variant),
        "wording": template.wording,
        "form": plan.form,
        "preference": plan.cell[1],
        "intention": plan.cell[2],
        "language": plan.language,
        **({"intention_text": plan.wish.text} if plan.wish else {}),
        **({"context": context.strip()} if context else {}),
        **({"drawn": f"{plan.drawn[1]} {plan.drawn[2]}"} if plan.drawn != plan.cell else {}),
    }


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
            "an instruction with preference none and intention none is empty: allow one of them, or only the form "
            "matching (for networks whose input includes the history)."
        )
    return cells


def _wordings(split: str, config: GrammarConfig) -> list[str]:
    return ["train"] if split != "test" else [*WORDINGS] if config.wordings == "both" else [config.wordings]


def _templates(words: Wordings, cell: Cell, wording: str) -> list[Template]:
    found = [t for t in words.templates if t.serves(*cell) and t.wording == wording]
    if not found:
        form, preference, intention = cell
        raise ValueError(
            f"no template of {wording} wording for form {form}, preference {preference}, intention {intention}: add "
            "one in the file of the setting `templates`."
        )
    return found


def _split(text: str) -> list[str]:
    for slot in slots(text):
        text = text.replace("{" + slot + "}", "\n")
    return text.split("\n")


def _draw(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]
