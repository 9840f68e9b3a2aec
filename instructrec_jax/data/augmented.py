"""Changed copies of training examples: the setting `data.train[].augment`.

Copy c of an example is a function of (seed, example, c), so it is made when it is read, in any process. A source with
copies is a source of 1 + copies entries for each example (`AugmentedSource`), and a `Mixture` draws one of them each
time that it draws the example (`mixture.Versions`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from instructrec_jax.augmentation.augmenter import AugmentConfig, Augmenter, Change, Changer, random_numbers
from instructrec_jax.augmentation.protection import words_of
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.fingerprints import digest_of_example
from instructrec_jax.data.mixture import IndexableSource, OfSource
from instructrec_jax.data.storage import code_version, digest_of

MADE_FROM, METHODS = "made_from", "augmented_by"  # keys of origins
_SPAN_TAG = re.compile(r"[BIESLU]-.")  # a tag of a word inside a span
_PLACE = "answer_start"
LOOKED_AT = 200  # examples of which one should change

Allowed = Callable[[str], Collection[str]]
"""Task name -> the methods that the task can take."""


def no_tags(task: str) -> bool:
    """No task has one tag per word. (A function of the module, because workers receive it.)"""
    return False


@dataclass(frozen=True)
class ExampleAugmenter:
    """Changes examples: `augmenter(example, copy)`.

    `input` is changed, else the instruction; and what users say in messages. Of examples with one tag per word, tags go
    with their words, and words inside of spans stay. What a target quotes stays, as do its words, those of the labels
    and of candidates. Everything else of an example is untouched.

    Attributes:
      labels: whose words stay.
      tags: task name -> whether outputs are one tag per word.
    """

    config: AugmentConfig
    seed: int
    labels: tuple[str, ...] = ()
    tags: Callable[[str], bool] = no_tags

    def __post_init__(self) -> None:
        _ = self.augmenter  # a wrong setting is said at once

    @cached_property
    def augmenter(self) -> Augmenter:
        return Augmenter(self.config)

    @cached_property
    def _label_words(self) -> frozenset[str]:
        return frozenset(words_of(self.labels))

    def key(self) -> dict[str, object]:
        """What the copies depend on beside the examples, as JSON."""
        settings = asdict(self.config)
        files = self.augmenter.thesaurus.files if self.config.synonyms else ()
        settings["thesaurus"] = digest_of(files)
        return {"augment": settings, "seed": self.seed, "labels": self.labels, "code": code_version("augmentation")}

    def __call__(self, example: Example, copy: int) -> Example:
        """Copy 1, 2, ... of an example."""
        draw = random_numbers(str(self.seed), digest_of_example(example).hex(), str(copy))
        made = ExampleChange(self.augmenter.change, self._label_words, example, [])
        if self.tags(example.task) and isinstance(example.output, tuple):
            changed = made.tagged(draw)
        else:
            changed = made.plain(draw)
        methods = ", ".join(dict.fromkeys(made.methods))
        origin = {**changed.origin, MADE_FROM: example.id or example.where or "unnamed", METHODS: methods}
        return replace(changed, origin=origin, where=f"{example.where}, copy {copy}" if example.where else "")


@dataclass(frozen=True)
class ExampleChange:
    """How an example changes with its texts.

    Attributes:
      change: of one text.
      label_words: which stay, in lower case.
      methods: those that changed something, filled in on the way.
    """

    change: Changer
    label_words: Collection[str]
    example: Example
    methods: list[str]

    def plain(self, draw: Callable[[], float]) -> Example:
        """An example whose output, if there is one, belongs to the whole text."""
        example = self.example
        quoted = quoted_texts(example.output)
        words = {*self.label_words} | words_of((*quoted, *example.candidates))

        def changed(text: str) -> Change:
            found = self.change(text, draw, words=words, quoted=quoted)
            self.methods.extend(found.methods)
            return found

        def turn(message: Message) -> Message:
            return replace(message, content=changed(message.content).text) if message.role == "user" else message

        messages = tuple(map(turn, example.messages))
        if not example.input:
            text = changed(example.instruction).text if example.instruction else ""
            return replace(example, instruction=text, messages=messages)
        found = changed(example.input)
        return replace(example, input=found.text, messages=messages, origin=self._moved(found))

    def _moved(self, found: Change) -> dict[str, str]:
        """The origin with the place of the answer in the changed input. (Its words stay, in their order.)"""
        origin, text = dict(self.example.origin), self.example.input or ""
        said = origin.get(_PLACE, "")
        if not said.isdecimal() or int(said) >= len(text):
            return origin
        front = len(text) - len(text.lstrip())
        at = front
        for number, each in enumerate(re.finditer(r"\S+\s*", text[front:])):
            if at <= int(said) < at + len(each[0]):
                now = front
                for token in found.tokens:
                    if token.number == number:
                        origin[_PLACE] = str(now + int(said) - at)
                        break
                    now += len(token.text) + len(token.space)
            at += len(each[0])
        return origin

    def tagged(self, draw: Callable[[], float]) -> Example:
        """An example with one tag per word."""
        example = self.example
        tags = example.output
        assert isinstance(tags, tuple)
        text: str | Sequence[str] = example.words or example.input or example.instruction
        if len(tags) != len(text.split() if isinstance(text, str) else text):
            return example  # the task says what is wrong with it
        found = self.change(text, draw, fixed=span_words(example))
        self.methods.extend(found.methods)
        output = tuple(tags[token.number] for token in found.tokens)
        words = tuple(token.text for token in found.tokens) if example.words else ()
        field = "input" if example.input else "instruction"
        changed: dict[str, str] = {field: found.text} if found.methods else {}
        return replace(example, output=output, words=words, **changed)  # type: ignore[arg-type]


def quoted_texts(output: object) -> tuple[str, ...]:
    """The texts of an output, which may stand in the text of its example."""
    if isinstance(output, str):
        return (output,)
    return output if isinstance(output, tuple) else ()


def span_words(example: Example) -> frozenset[int]:
    """The numbers of the words inside of spans, of an example with one tag per word."""
    tags = example.output if isinstance(example.output, tuple) else ()
    return frozenset(number for number, tag in enumerate(tags) if _SPAN_TAG.match(tag))


@dataclass(frozen=True)
class AugmentedSource(OfSource):
    """A source with copies: entry i is version i % `versions` of example i // `versions`, version 0 as it is."""

    augmenter: ExampleAugmenter

    @property
    def versions(self) -> int:
        return 1 + self.augmenter.config.copies

    @cached_property
    def _key(self) -> bytes:
        return json.dumps(self.augmenter.key(), sort_keys=True).encode()

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint.encode() + self._key).hexdigest()

    def __len__(self) -> int:
        return len(self.source) * self.versions

    def __getitem__(self, index: int) -> Example:
        number, version = divmod(index, self.versions)
        return self.augmenter(self.source[number], version) if version else self.source[number]

    def digest(self, index: int) -> bytes:
        number, version = divmod(index, self.versions)
        own = self.source.digest(number)
        return hashlib.sha256(own + self._key + str(version).encode()).digest() if version else own


def augmented(source: IndexableSource, augmenter: ExampleAugmenter, allowed: Allowed, setting: str) -> AugmentedSource:
    """A source with copies.

    Args:
      setting: name of the settings, for messages.

    Raises ValueError for a method that a task cannot take, or where none of the first examples changes.
    """
    found = AugmentedSource(source, augmenter)
    first = [source[number] for number in range(min(len(source), LOOKED_AT))]
    check_methods(first, augmenter.config.methods, allowed, f"{setting}.")
    copies = range(1, found.versions)
    if not any(augmenter(example, copy).origin[METHODS] for example in first for copy in copies):
        raise ValueError(
            f"{setting} changes none of the first {len(first)} texts of {source.name}: their words are names, numbers, "
            "words of the target, or not separated by spaces; or no synonyms are listed for them. Set "
            "augment.capitalized to true for texts in capitals, raise the rates, or write copies with the verb augment."
        )
    return found


def check_methods(examples: Sequence[Example], methods: Sequence[str], allowed: Allowed, prefix: str) -> None:
    """Raises ValueError for a method that the task of an example cannot take, naming both. prefix: of its setting."""
    for task in dict.fromkeys(example.task for example in examples):
        possible = allowed(task)
        for method in methods:
            if method not in possible:
                named = f" {task}" if task else ""
                choice = f"it takes {', '.join(possible)}" if possible else "it takes no augmentation"
                raise ValueError(f"{prefix}{method}: the task{named} cannot take {method}, because {WHY}; {choice}.")


WHY = "its targets would no longer belong to the changed text"
