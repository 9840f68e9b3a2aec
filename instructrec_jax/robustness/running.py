"""Runs a suite on a run: answers before and after a change, and how often they are not as expected.

The run's `Asker` answers, in the batches of `predict`, so what is tested is what is served, and an unchanged example
has the answer of an evaluation. All tests ask in one call, so batches are full, and no
test compiles a shape of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import numpy as np
import scipy

from instructrec_jax.augmentation.augmenter import random_numbers
from instructrec_jax.data.data_config import Split
from instructrec_jax.data.example import BadExample, Example, Message, Output
from instructrec_jax.data.fingerprints import digest_of_example
from instructrec_jax.data.prompts import render
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.evaluation.behavior import Behavior, BehaviorResult, FailedCase, LeftOut
from instructrec_jax.robustness.expectations import (
    TOP,
    Criterion,
    NotForThisRun,
    check_outputs,
    criterion,
    kind_of,
    names_of,
)
from instructrec_jax.robustness.lists import language_of
from instructrec_jax.robustness.perturbations import World
from instructrec_jax.robustness.shown import shown_answer, shown_pair
from instructrec_jax.robustness.suite import BehaviorTest, Given, Suite
from instructrec_jax.runs.predictions import Asker
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.answers import Answer, NumberAnswer
from instructrec_jax.tasks.base import pieces
from instructrec_jax.tasks.kinds import as_ranking

SHOWN = 3  # failures of a test
CONFIDENCE = 0.95
CANDIDATES = 20  # of an example without any, for a task that ranks given ones alone


@dataclass(frozen=True)
class Case:
    """A changed example, or one of a minimum functionality test.

    Attributes:
      number: of the original; None: of a minimum functionality test.
      output: that the test expects of it.
    """

    example: Example
    number: int | None
    output: Output = None


class Examiner:
    """Runs tests on drawn examples of a split.

    Args:
      count: how many examples are drawn, with `seed`.

    Raises ValueError for a split without sources, a run without answers, and where several processes run.
    """

    def __init__(self, run: Run, split: Split, count: int, seed: int) -> None:
        if jax.process_count() > 1:
            raise ValueError("--robust runs on one process: leave it out here, and evaluate once more on one.")
        self.run, self.split = run, split
        self.asker: Asker = run.asker()
        cases = run.data.cases(run.task, split)
        if not len(cases):
            raise ValueError(f"data.{split} lists no sources to draw examples from: set it, or use another --split.")
        every = [own[0].example for own in pieces(cases)]
        drawn = np.sort(np.random.default_rng(seed).permutation(len(every))[:count])
        task = as_ranking(run.task)
        ids = task.catalogue.ids if task is not None and not task.retrieves else ()
        self.originals = [_with_candidates(every[number], ids, seed) for number in drawn.tolist()]

    @cached_property
    def language(self) -> str:
        return language_of([render(example) for example in self.originals[:100]])

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of the task, or of all subtasks."""
        config = self.run.config.task
        parts = [config, *(part.task for part in getattr(config, "tasks", ()))]
        return tuple(dict.fromkeys(label for part in parts for label in part.label_names or ()))

    def world(self, language: str) -> World:
        return World(language, self.labels, self.run.config.task.has_tags, lambda: self._by_popularity)

    @cached_property
    def _by_popularity(self) -> tuple[str, ...]:
        """The catalog's items by their number in data.train, the most frequent first; () without catalog or data."""
        task = as_ranking(self.run.task)
        if task is None:
            return ()
        counts: Counter[str] = Counter()
        with heartbeat("counting the items of data.train"):
            for example in self.run.data.examples("train") if self.run.config.data.train else ():
                output = example.output if isinstance(example.output, tuple) else (example.output,)
                counts.update([*example.history, *map(str, output)])
        return tuple(sorted(task.catalogue.ids, key=lambda item: -counts[item]))

    def ask(self, examples: Sequence[Example]) -> tuple[list[Answer | None], dict[int, str]]:
        """(the answer to each example; None: the run cannot read it; number of such an example -> why)."""
        asked, places, why = [], [], {}
        for number, example in enumerate(examples):
            try:
                asked.append(self.asker.example(example, str(number)))
                places.append(number)
            except BadExample as error:  # such as an example without a text
                why[number] = str(error)
        found: list[Answer | None] = [None] * len(examples)
        answers, skipped = self.asker.answers(asked, skip=True) if asked else ([], [])
        for place, answer in zip(places, answers, strict=True):
            found[place] = answer
        return found, why | {int(row.where): f"{row.reason}: {row.detail}" for row in skipped}

    def cases(self, test: BehaviorTest, language: str, seed: int) -> tuple[list[Case], int]:
        """(the cases of a test, how many examples it leaves as they are).

        Raises NotForThisRun for a task name that no example has.
        """
        own = [n for n, example in enumerate(self.originals) if not test.task or example.task == test.task]
        if not own:
            listed = ", ".join(sorted({example.task for example in self.originals}))
            raise NotForThisRun(f"no example has the task {test.task!r}: they have {listed}.")
        self._check_items(test)
        if test.perturb is None:
            return [placed(self.originals[own[0]], given) for given in test.given], 0
        world = self.world(language)
        made = [(n, test.perturb(self.originals[n], world, str(seed), test.name)) for n in own]
        found = [Case(example, n) for n, example in made if example is not None]
        return found, len(own) - len(found)

    def _check_items(self, test: BehaviorTest) -> None:
        """Raises NotForThisRun for an item that the test names, but that the catalog does not have."""
        task, values = as_ranking(self.run.task), test.expect.values
        if task is None or test.expect.how not in ("rank", "output", "one_of", "not", "own"):
            return
        value = values.get("value", [])
        named = [*(value if isinstance(value, list) else [value]), *(each.fields.get("output") for each in test.given)]
        named += [values["item"]] if values.get("item", TOP) != TOP else []
        known = task.catalogue.index
        if unknown := [name for name in named if name is not None and not (isinstance(name, str) and name in known)]:
            raise NotForThisRun(f"the catalog has no item {unknown[0]!r:.60}: name items by their ids, as texts.")


def _with_candidates(example: Example, ids: Sequence[str], seed: int) -> Example:
    """An example whose candidates are its positive item and others of `ids`, drawn with the seed, if it has none.

    ids: those of the catalog, for a task that ranks given candidates alone; else ().
    """
    if not ids or example.candidates:
        return example
    draw = random_numbers(str(seed), digest_of_example(example).hex())
    others = [item for item in ids if item != example.output and item not in example.history]
    drawn = [others.pop(int(draw() * len(others))) for _ in range(min(CANDIDATES - 1, len(others)))]
    drawn.insert(int(draw() * (len(drawn) + 1)), str(example.output))
    return replace(example, candidates=tuple(drawn))


@dataclass(frozen=True)
class Asked:
    """A test whose cases are answered.

    Attributes:
      before: the answers to all unchanged examples.
      after: those to the cases; None: the run cannot read it, for the reason in `why`.
    """

    test: BehaviorTest
    cases: Sequence[Case]
    unchanged: int
    originals: Sequence[Example]
    before: Sequence[Answer | None]
    after: Sequence[Answer | None]
    why: Sequence[str]

    def judged(self, limit: float | None) -> BehaviorResult:
        """The result. Raises NotForThisRun for a test whose labels or answers the run has not got, or whose own texts
        it cannot read."""
        test = self.test
        pairs = []
        for case, after, why in zip(self.cases, self.after, self.why, strict=True):
            before = None if case.number is None else self.before[case.number]
            if after is None and case.number is None:
                raise NotForThisRun(f"the run cannot read {shown_pair(None, case.example)[1]!r}: {why}")
            if after is not None and (case.number is None or before is not None):
                pairs.append((case, before, after))
        wanted: dict[tuple[object, ...], Criterion] = {}
        failed = []
        for case, before, after in pairs:
            kind = kind_of(after), *names_of(after)  # subtasks have other labels, and examples other candidates
            if kind not in wanted:
                wanted[kind] = criterion(test.expect, after, self._spread())
            if test.expect.how == "own":
                check_outputs([case.output], after)
            if not wanted[kind].holds(before, after, case.output):
                failed.append((case, before, after))
        shown = [
            failed_case(
                None if case.number is None else self.originals[case.number], before, case.example, after, case.output
            )
            for case, before, after in failed[:SHOWN]
        ]
        return counted(
            test.name,
            test.kind,
            change="" if test.perturb is None else str(test.perturb),
            expected="; ".join(dict.fromkeys(each.said for each in wanted.values())),
            cases=len(pairs),
            unchanged=self.unchanged,
            unread=len(self.cases) - len(pairs),
            failures=len(failed),
            limit=limit if test.limit is None else test.limit,
            shown=shown,
        )

    def _spread(self) -> float:
        """The standard deviation of the numbers that the run answers to unchanged examples of the test's task."""
        numbers = [
            answer.number
            for example, answer in zip(self.originals, self.before, strict=True)
            if isinstance(answer, NumberAnswer) and (not self.test.task or example.task == self.test.task)
        ]
        return float(np.std(numbers)) if numbers else 0.0


def failed_case(
    before: Example | None, answer_before: Answer | None, after: Example, answer: Answer, wanted: Output = None
) -> FailedCase:
    """A failure to show; wanted: what a minimum functionality test expects."""
    texts = shown_pair(before, after)
    return {
        "id": after.id,
        "before": texts[0],
        "after": texts[1],
        "answer_before": shown_answer(answer_before) if answer_before is not None else _as_text(wanted),
        "answer_after": shown_answer(answer),
    }


def placed(base: Example, given: Given) -> Case:
    """An example of a minimum functionality test: like `base`, but for what is given."""
    found = replace(base, output=None, words=(), id="")
    if given.text is not None:
        if found.messages:
            found = replace(found, messages=(Message("user", given.text),))
        else:
            found = replace(found, **{"instruction" if base.input is None else "input": given.text})  # type: ignore[arg-type]
    found = replace(found, **dict(given.fields))  # type: ignore[arg-type]
    return Case(replace(found, output=None), None, found.output)


def _as_text(output: Output) -> str:
    return "" if output is None else f"expected: {', '.join(output) if isinstance(output, tuple) else output}"


def counted(
    name: str,
    kind: str,
    *,
    change: str,
    expected: str,
    cases: int,
    unchanged: int,
    unread: int,
    failures: int,
    limit: float | None,
    shown: list[FailedCase],
) -> BehaviorResult:
    """A test's result, with the rate of its failures."""
    rate, low, high = interval(failures, cases)
    return {
        "name": name,
        "kind": kind,
        "change": change,
        "expected": expected,
        "cases": cases,
        "unchanged": unchanged,
        "unread": unread,
        "failures": failures,
        "rate": rate,
        "low": low,
        "high": high,
        "limit": limit,
        "over": limit is not None and rate is not None and rate > limit,
        "failed": shown,
    }


def interval(failures: int, cases: int) -> tuple[float | None, float | None, float | None]:
    """(rate, low, high): the share of failures and its 95% Wilson score interval (Wilson, 1927); None without cases."""
    if not cases:
        return None, None, None
    bounds = scipy.stats.binomtest(failures, cases).proportion_ci(CONFIDENCE, method="wilson")
    return failures / cases, float(bounds.low), float(bounds.high)


def behavior_of(examiner: Examiner, suite: Suite, limit: float | None = None) -> Behavior:
    """Runs the tests of a suite.

    Args:
      limit: largest failure rate of each test, in place of those of the suite; None: the suite's.

    Raises ValueError for a test that is not for this run and not optional, and for a suite none of whose tests has a
    case.
    """
    language = suite.language or examiner.language
    made: list[tuple[BehaviorTest, list[Case], int]] = []
    left_out: list[LeftOut] = []

    def left(test: BehaviorTest, error: NotForThisRun) -> None:
        if not test.optional:
            raise ValueError(f"{suite.name}: test {test.name!r} is not for this run: {error}") from None
        left_out.append({"name": test.name, "why": str(error)})

    for test in suite.tests:
        try:
            asked = test if limit is None else replace(test, limit=None)
            made.append((asked, *examiner.cases(asked, language, suite.seed)))
        except NotForThisRun as error:
            left(test, error)
    results: list[BehaviorResult] = []
    for each in answered(examiner, made):
        try:
            results.append(each.judged(suite.limit if limit is None else limit))
        except NotForThisRun as error:
            left(each.test, error)
    if suite.tests and not any(result["cases"] for result in results):
        count = len(examiner.originals)
        raise ValueError(f"no test of {suite.name} has a case: none changes any of the {count:,} drawn examples.")
    return {
        "suite": suite.name,
        "language": language,
        "split": examiner.split,
        "seed": suite.seed,
        "examples": len(examiner.originals),
        "tests": results,
        "left_out": left_out,
    }


def answered(examiner: Examiner, made: Sequence[tuple[BehaviorTest, list[Case], int]]) -> list[Asked]:
    """Tests with their answers, and those to the unchanged examples: all in one call, so that batches are full."""
    originals = examiner.originals
    every = [*originals, *(case.example for _, cases, _ in made for case in cases)]
    with heartbeat(f"answering {len(originals):,} examples and {len(every) - len(originals):,} changed ones"):
        answers, why = examiner.ask(every)
    found, start = [], len(originals)
    for test, cases, unchanged in made:
        end = start + len(cases)
        reasons = [why.get(number, "") for number in range(start, end)]
        found.append(Asked(test, cases, unchanged, originals, answers[: len(originals)], answers[start:end], reasons))
        start = end
    return found
