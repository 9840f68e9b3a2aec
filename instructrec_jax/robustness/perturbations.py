"""The perturbations by name: what `perturb` in a suite can be, their options, and how they change an example.

A perturbed example is a function of (seed, name of the test, example). One that changes nothing gives None.
"""

import inspect
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from instructrec_jax.augmentation.augmenter import METHODS, AugmentConfig, Augmenter, Change, Changer, random_numbers
from instructrec_jax.augmentation.edits import Draw, Token, joined
from instructrec_jax.augmentation.protection import words_of
from instructrec_jax.data.augmented import ExampleChange
from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import digest_of_example
from instructrec_jax.evaluation.prompt_variants import OLD, reworded
from instructrec_jax.robustness import meaning, noise
from instructrec_jax.robustness.lists import lists_of
from instructrec_jax.robustness.units import ADDED, units
from instructrec_jax.runs.settings_tree import nearest

NOISE: dict[str, Callable[..., list[Token]]] = {
    each.__name__: each
    for each in (noise.typos, noise.keyboard, noise.ocr, noise.lookalikes, noise.zero_width, noise.spaces)
}
# These change words that noise leaves alone: numbers, addresses and negations.
OTHERS: dict[str, Callable[..., list[Token]]] = {
    each.__name__: each
    for each in (
        *(noise.case, noise.punctuation, meaning.names, meaning.places, meaning.numbers, meaning.contractions),
        *(meaning.negation, meaning.distractor, meaning.truncation, meaning.swap),
    )
}


@dataclass(frozen=True)
class World:
    """What perturbations know beside an example.

    Attributes:
      language: of the lists of words.
      labels: of the run, whose words stay.
      is_tagged: task name -> whether outputs are one tag per word.
      by_popularity: the items of the catalog, the most popular first; () for a task without one.
    """

    language: str
    labels: Sequence[str] = ()
    is_tagged: Callable[[str], bool] = lambda task: False
    by_popularity: Callable[[], Sequence[str]] = tuple


# ---- changes of an example's lists and instruction -----------------------------------------------------


def instruction(example: Example, draw: Draw, world: World, *, wordings: Sequence[str] = ()) -> Example:
    """Another wording of the instruction; an example whose text is its instruction stays."""
    if example.input is None or not example.instruction:
        return example
    choice = list(wordings) or lists_of(world.language).wordings
    return reworded(example, choice[int(draw() * len(choice))])


def options(example: Example, draw: Draw, world: World) -> Example:
    """The candidates in another order."""
    return replace(example, candidates=_shuffled(example.candidates, draw))


def history_shuffle(example: Example, draw: Draw, world: World, *, last: int = 0) -> Example:
    """The items of the history in another order; the `last` ones stay in their places."""
    moved = len(example.history) - last
    head, tail = example.history[: max(moved, 0)], example.history[max(moved, 0) :]
    return replace(example, history=(*_shuffled(head, draw), *tail))


def history_drop(example: Example, draw: Draw, world: World, *, rate: float = 0.2) -> Example:
    """Without some items of the history, at least one; an item is left."""
    drop = min(max(round(rate * len(example.history)), 1), len(example.history) - 1)
    gone = set(_drawn(len(example.history), max(drop, 0), draw))
    return replace(example, history=tuple(x for n, x in enumerate(example.history) if n not in gone))


def history_replace(
    example: Example, draw: Draw, world: World, *, rate: float = 0.2, distance: int = 5, last: int = 1
) -> Example:
    """Some items of the history become items of nearly the same popularity; the `last` ones stay.

    distance: most places between both in the order of popularity in data.train.
    """
    order = world.by_popularity()
    place = {item: number for number, item in enumerate(order)}
    known = [n for n, item in enumerate(example.history[: max(len(example.history) - last, 0)]) if item in place]
    found, taken = list(example.history), {*example.history, str(example.output)}
    for n in (known[each] for each in _drawn(len(known), max(round(rate * len(known)), 1), draw)):
        at = place[found[n]]
        near = [item for item in order[max(at - distance, 0) : at + distance + 1] if item not in taken]
        if near:
            found[n] = near[int(draw() * len(near))]
            taken.add(found[n])
    return replace(example, history=tuple(found))


def _drawn(size: int, count: int, draw: Draw) -> list[int]:
    left, found = list(range(size)), []
    for _ in range(min(count, size)):
        found.append(left.pop(int(draw() * len(left))))
    return sorted(found)


def _shuffled(items: Sequence[str], draw: Draw) -> tuple[str, ...]:
    """Another order, where there is one."""
    left, found = list(items), []
    while left:
        found.append(left.pop(int(draw() * len(left))))
    if tuple(found) == tuple(items):
        found = [*found[1:], *found[:1]]
    return tuple(found)


LISTS: dict[str, Callable[..., Example]] = {
    each.__name__: each for each in (instruction, options, history_shuffle, history_drop, history_replace)
}
AUGMENT = "augment"  # changes of data.train[].augment, with their settings
NAMES = (*NOISE, *OTHERS, *LISTS, AUGMENT)


# ---- a perturbation with its options -------------------------------------------------------------------


@dataclass(frozen=True)
class Perturbation:
    """One of `NAMES` with its options. Raises ValueError for an unknown name or option, or a wrong value."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"there is no perturbation {self.name!r}.{_hint(self.name, NAMES)}")
        if self.name == AUGMENT:
            known = {each.name: type(each.default) for each in fields(AugmentConfig) if each.name in _AUGMENT_OPTIONS}
            self._check({name: float if kind is int else kind for name, kind in known.items()})
            _ = self._augmenter
            return
        function: Callable[..., object] = {**NOISE, **OTHERS, **LISTS}[self.name]
        hints = typing.get_type_hints(function)
        own = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        self._check({name: hints[name] for name in own})
        if function is meaning.swap:
            pairs = typing.cast(Sequence[str], self.options.get("pairs", ()))
            if not pairs:
                raise ValueError("swap has no pairs: list them, as in {pairs: [he = she]}.")
            if twice := [
                old for old, times in Counter(meaning.swapped_pair(each)[0] for each in pairs).items() if times > 1
            ]:
                raise ValueError(f"swap.pairs has {twice[0]!r} twice: leave one out.")

    def _check(self, kinds: Mapping[str, object]) -> None:
        for name, value in self.options.items():
            if name not in kinds:
                listed = f"it has {', '.join(kinds)}" if kinds else "it has none"
                raise ValueError(f"{self.name} has no option {name!r}: {listed}.{_hint(name, kinds)}")
            if problem := _problem(name, value, kinds[name]):
                raise ValueError(f"{self.name}.{name} should be {problem}, but is {value!r:.60}.")

    @cached_property
    def _augmenter(self) -> Augmenter:
        settings = dict(self.options)
        return Augmenter(AugmentConfig(**{"copies": 1, "capitalized": True, **settings}))  # type: ignore[arg-type]

    def __str__(self) -> str:
        given = ", ".join(f"{name} {value}" for name, value in self.options.items() if isinstance(value, str | float))
        return f"{self.name} ({given})" if given else self.name

    def __call__(self, example: Example, world: World, *key: str) -> Example | None:
        """The perturbed example, a function of the key; None where it says the same."""
        draw = random_numbers(*key, digest_of_example(example).hex())
        if self.name in LISTS:
            found: Example | None = LISTS[self.name](example, draw, world, **self.options)
        else:
            found = self._of_texts(example, draw, world)
        return None if found is None or _said(found) == _said(example) else found

    def _of_texts(self, example: Example, draw: Draw, world: World) -> Example | None:
        tagged = world.is_tagged(example.task) and isinstance(example.output, tuple)
        plain = replace(example, origin={})  # places in the text are of no use in a changed one
        made = ExampleChange(self._changer(world.language, tagged), words_of(world.labels), plain, [])
        found = made.tagged(draw) if tagged else made.plain(draw)
        text = found.input or found.instruction
        if tagged and not found.words and len(text.split()) != len(found.output or ()):  # type: ignore[arg-type]
            return None  # a tag per word: a word was divided, or is gone
        return replace(found, origin=example.origin)

    def _changer(self, language: str, of_tags: bool) -> Changer:
        if self.name == AUGMENT:
            return self._augmenter.change
        is_noise = self.name in NOISE
        function = {**NOISE, **OTHERS}[self.name]

        def change(
            text: str | Sequence[str],
            draw: Draw,
            *,
            words: Collection[str] = (),
            quoted: Sequence[str] = (),
            fixed: Collection[int] = (),
        ) -> Change:
            given: str | Sequence[str] = text.split() if isinstance(text, str) and of_tags else text
            front, tokens = units(given, words=words, quoted=quoted, fixed=fixed, noise=is_noise)
            changed = function(list(tokens), draw, language, **self.options)
            if of_tags and any(token.number == ADDED for token in changed):
                changed = tokens  # an added word has no tag
            return Change(front + joined(changed), changed, (self.name,) * (changed != tokens))

        return change


_AUGMENT_OPTIONS = (*METHODS, "thesaurus", "capitalized", "protect")


def _said(example: Example) -> tuple[object, ...]:
    e = example
    return e.instruction, e.input, e.messages, e.candidates, e.history, e.words, e.system


def _hint(name: str, names: Collection[str]) -> str:
    near = nearest(name, names)
    if near:
        return f" Did you mean {near!r}?"
    return f" There are {', '.join(names)}." if len(names) > 3 else ""


def _problem(name: str, value: object, kind: object) -> str | None:
    """What an option should be; None: it is."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return None if value in choices else "one of " + ", ".join(choices)
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is int:
        return None if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else "a count, 0 or more"
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if is_number and 0 <= value <= 1 else "a share from 0 to 1"  # type: ignore[operator]
    if kind is str:
        return None if isinstance(value, str) else "a text"
    is_list = isinstance(value, list | tuple) and bool(value) and all(isinstance(each, str) and each for each in value)
    if is_list and name == "wordings" and not any(OLD in each for each in typing.cast(list[str], value)):
        return f"a list of texts with {OLD} in one of them"
    return None if is_list else "a list of texts"
