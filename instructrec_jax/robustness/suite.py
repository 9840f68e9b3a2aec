"""A suite of tests, read from YAML: strictly, so an unknown field is an error that names it.

name: sentiment
tests:
  - name: typos
    kind: invariance
    perturb: {typos: {rate: 0.1}}
  - name: plain praise
    kind: minimum
    template: "{first_name} calls the {thing} {good}."
    slots: {thing: [film, book], good: [excellent, wonderful]}
    expect: {output: positive}
  - name: blame
    kind: directional
    perturb: {distractor: {sentences: [I hate it.]}}
    expect: {probability: {label: positive, change: not_up, by: 0.1}}
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.parsing import parse_yaml, read_yaml
from instructrec_jax.robustness.expectations import Expectation, read_expectation
from instructrec_jax.robustness.lists import LANGUAGES, Lists, lists_of
from instructrec_jax.robustness.perturbations import Perturbation
from instructrec_jax.robustness.templates import filled
from instructrec_jax.runs.settings_tree import nearest
from instructrec_jax.tasks.text.text_config import ONE_LABEL

T = TypeVar("T")
Kind = Literal["invariance", "directional", "minimum"]
KINDS: tuple[Kind, ...] = ("invariance", "directional", "minimum")
BIAS = "bias"  # the suite of names, pronouns and dialects
GIVEN = ("instruction", "input", "output", "messages", "candidates", "history", "system", "words")
# What a run predicts -> the suite that `default` reads, by language; see docs/robustness.md.
FAMILIES = {
    **dict.fromkeys(ONE_LABEL, "classification"),
    **{name: name for name in ("multilabel", "regression", "span", "choice", "similarity", "translation")},
    **{name: name for name in ("question_answering", "summarization", "retrieval", "sequence")},
    "extractive_summarization": "summarization",
    "token_classification": "tagging",
    **dict.fromkeys(("language_model", "dialogue", "preference"), "generation"),
    **dict.fromkeys(("reranker", "language_model_ranking", "generative"), "retrieval"),
}


@dataclass(frozen=True)
class Given:
    """An example of a minimum functionality test: fields of an `Example`, or a text where the run's texts stand."""

    fields: Mapping[str, object]
    text: str | None = None


@dataclass(frozen=True)
class BehaviorTest:
    """One test.

    Attributes:
      perturb: of invariance and directional tests.
      given: the examples of a minimum functionality test.
      expect: of the answers; of invariance: what "the same" is, with a default for each kind of answer.
      task: only examples of this task name; "": all.
      limit: largest failure rate; None: that of the suite.
      optional: left out, with the reason, where the run has not got its labels.
    """

    name: str
    kind: Kind
    expect: Expectation
    perturb: Perturbation | None = None
    given: tuple[Given, ...] = ()
    task: str = ""
    limit: float | None = None
    optional: bool = False


@dataclass(frozen=True)
class Adversary:
    """The adversarial search; see `adversarial`.

    Attributes:
      budget: most texts that the run reads for an example.
      changed: largest share of the words that change.
      similarity: smallest cosine of the changed text's vector with the original's; 0: not asked for.
      encoder: run or folder whose vectors these are; "": the run's own.
      thesaurus: as in data.train[].augment; "": WordNet where it is installed, else typing errors alone.
      candidates: most replacements that are tried for a word.
      examples: how many are attacked.
    """

    budget: int = 100
    changed: float = 0.2
    similarity: float = 0.8
    encoder: str = ""
    thesaurus: str = ""
    candidates: int = 6
    examples: int = 100


@dataclass(frozen=True)
class Suite:
    """Tests.

    Attributes:
      language: of the lists of words; None: that of the run's texts.
      examples: of the split, drawn with `seed`, that each test changes.
      limit: largest failure rate of a test; None: any.
    """

    name: str
    tests: tuple[BehaviorTest, ...] = ()
    language: str | None = None
    examples: int = 500
    seed: int = 0
    limit: float | None = None
    adversarial: Adversary | None = None


def shipped_suite(kind: str, language: str) -> Suite:
    """The suite of a task type. Raises ValueError for a task without one."""
    if kind not in FAMILIES:
        raise ValueError(f"there is no default suite for the task {kind}: its answers are not tested by changed texts.")
    return suite_of_package(FAMILIES[kind], language)


def suite_of_package(name: str, language: str) -> Suite:
    """suites/NAME.LANGUAGE.yaml: of a family of tasks, or `BIAS`."""
    place = files("instructrec_jax.robustness") / "suites" / f"{name}.{language}.yaml"
    return read_suite_of(parse_yaml(place.read_text(encoding="utf-8"), place.name), place.name, language)


def read_suite(path: Path, language: str) -> Suite:
    """A suite of a file. Raises ValueError naming the file, the test and the field."""
    return read_suite_of(read_yaml(path), str(path), language)


def read_suite_of(value: object, where: str, language: str) -> Suite:
    """language: of the lists, where the suite sets none."""
    own = _Fields(value, where)
    chosen = own.one_of("language", LANGUAGES, None)
    lists = lists_of(chosen or language)
    entries = own.get("tests", list, [])
    adversarial = own.get("adversarial", dict, None)
    suite = Suite(
        name=own.get("name", str, Path(where).name.removesuffix(".yaml")),
        tests=tuple(_test(each, f"{where}: tests[{number}]", lists) for number, each in enumerate(entries)),
        language=chosen,
        examples=own.count("examples", 500),
        seed=own.count("seed", 0, least=0),
        limit=own.share("limit", None),
        adversarial=None if adversarial is None else _adversary(adversarial, f"{where}: adversarial"),
    )
    own.done()
    names = [test.name for test in suite.tests]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{where}: two tests are named {twice[0]!r}: rename one.")
    if not names and suite.adversarial is None:
        raise ValueError(f"{where}: it has no tests: list them under tests.")
    return suite


def _test(value: object, where: str, lists: Lists) -> BehaviorTest:
    own = _Fields(value, where)
    name = own.get("name", str, "")
    own.where = where = f"{where} ({name!r})" if name else where
    if not name:
        raise ValueError(f"{where}: it has no name.")
    kind = own.one_of("kind", KINDS, None)
    if kind is None:
        raise ValueError(f"{where}: kind is missing: {', '.join(KINDS)}.")
    perturb = _perturbation(own.get("perturb", object, None), where)
    given = _given(own, lists)
    if (kind == "minimum") == (perturb is not None):
        rule = "a minimum test has examples or a template, and no perturb" if kind == "minimum" else "set perturb"
        raise ValueError(f"{where}: {rule}.")
    if (kind == "minimum") != bool(given):
        rule = (
            "it has no examples: list them, or write a template" if kind == "minimum" else f"it is {kind}: no examples"
        )
        raise ValueError(f"{where}: {rule}.")
    key = "same" if kind == "invariance" else "expect"
    wanted = own.get(key, dict, {})
    try:
        expect = read_expectation(kind, cast(dict[str, object], wanted), any("output" in each.fields for each in given))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    test = BehaviorTest(
        name,
        cast(Kind, kind),
        expect,
        perturb,
        given,
        own.get("task", str, ""),
        own.share("limit", None),
        own.get("optional", bool, False),
    )
    own.done()
    return test


def _perturbation(value: object, where: str) -> Perturbation | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"{where}: perturb should be a name, or one name with options, but is {value!r:.60}.")
    ((name, options),) = value.items()
    options = {} if options is None else options
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise ValueError(f"{where}: the options of {name} should be named, but are {options!r:.60}.")
    try:
        return Perturbation(str(name), options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _given(own: "_Fields", lists: Lists) -> tuple[Given, ...]:
    """The examples of a minimum functionality test: its own, and those of its template."""
    found = []
    for number, each in enumerate(own.get("examples", list, [])):
        where = f"{own.where}: examples[{number}]"
        if isinstance(each, str):
            found.append(Given({}, each))
            continue
        record = _Fields(each, where)
        text = record.get("text", str, None)
        fields = {name: record.get(name, object, None) for name in GIVEN if name in record.left}
        record.done()
        try:
            whole = {"instruction": text or "text", **fields}
            read = Example.from_record(whole)
        except BadExample as error:
            raise ValueError(f"{where}: {error}") from None
        found.append(Given({name: getattr(read, name) for name in fields}, text))
    template, slots = own.get("template", object, None), own.get("slots", dict, {})
    count = own.count("count", 100)
    if template is not None:
        try:
            found += [Given({}, text) for text in filled(template, slots, lists, count, own.where)]
        except ValueError as error:
            raise ValueError(f"{own.where}: {error}") from None
    elif slots:
        raise ValueError(f"{own.where}: slots are set without a template.")
    return tuple(found)


def _adversary(value: object, where: str) -> Adversary:
    own, default = _Fields(value, where), Adversary()
    similarity, changed = own.share("similarity", default.similarity), own.share("changed", default.changed)
    assert similarity is not None and changed is not None
    found = Adversary(
        budget=own.count("budget", default.budget),
        changed=changed,
        similarity=similarity,
        encoder=own.get("encoder", str, ""),
        thesaurus=own.get("thesaurus", str, ""),
        candidates=own.count("candidates", default.candidates),
        examples=own.count("examples", default.examples),
    )
    own.done()
    return found


class _Fields:
    """The fields of an object, each taken once; `done` refuses what is left."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object with named fields, found {value!r:.60}.")
        self.where, self.left, self.known = where, dict(value), list[str]()

    def get(self, name: str, kind: type, default: T) -> Any:  # Any: of the kind, or the default
        self.known.append(name)
        value = self.left.pop(name, default)
        if value is default:
            return default
        if kind is not object and (not isinstance(value, kind) or isinstance(value, bool) and kind is not bool):
            said = {str: "a text", list: "a list", dict: "an object", bool: "true or false", int: "a whole number"}
            raise ValueError(f"{self.where}: {name} should be {said[kind]}, but is {value!r:.60}.")
        return value

    def one_of(self, name: str, choices: Collection[str], default: str | None) -> str | None:
        value = self.get(name, object, default)
        if value is not default and value not in choices:
            raise ValueError(f"{self.where}: {name} should be one of {', '.join(choices)}, but is {value!r:.60}.")
        return cast(str | None, value)

    def count(self, name: str, default: int, least: int = 1) -> int:
        value = self.get(name, int, default)
        if value < least:
            raise ValueError(f"{self.where}: {name} should be at least {least}, but is {value}.")
        return cast(int, value)

    def share(self, name: str, default: float | None) -> float | None:
        value = self.get(name, object, default)
        if value is not default and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1
        ):
            raise ValueError(f"{self.where}: {name} should be a share from 0 to 1, but is {value!r:.60}.")
        return cast(float | None, value)

    def done(self) -> None:
        for name in self.left:
            near = nearest(str(name), self.known)
            hint = f" Did you mean {near!r}?" if near else f" There are {', '.join(self.known)}."
            raise ValueError(f"{self.where}: there is no field {name!r}.{hint}")
