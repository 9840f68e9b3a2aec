"""robustness.json: what `evaluate --robust` writes, and the report shows."""

from typing import NotRequired, TypedDict


class FailedCase(TypedDict):
    """A case that failed: texts and answers before and after; a minimum functionality test has only the latter."""

    id: str
    before: str
    after: str
    answer_before: str
    answer_after: str


class BehaviorResult(TypedDict):
    """A test.

    Attributes:
      kind: invariance, directional or minimum.
      change: the perturbation, as text; "" of a minimum functionality test.
      expected: the criterion, as text.
      cases: changed examples with an answer.
      unchanged: examples that the perturbation leaves as they are; they are no cases.
      unread: changed examples that the run cannot read, such as those that are too long.
      rate, low, high: share of failures with its 95% Wilson interval; None without cases.
      limit: largest rate that the suite allows; None: any.
      over: whether the rate is above it.
      failed: three of the failures.
    """

    name: str
    kind: str
    change: str
    expected: str
    cases: int
    unchanged: int
    unread: int
    failures: int
    rate: float | None
    low: float | None
    high: float | None
    limit: float | None
    over: bool
    failed: list[FailedCase]


class LeftOut(TypedDict):
    """A test that is not for this run."""

    name: str
    why: str


class Attacked(TypedDict):
    """The adversarial search.

    Attributes:
      right: attacked examples: those that the run answers right.
      flipped: of them, those whose answer a change within the bounds makes wrong.
      accuracy_before, accuracy_after: on all examples that were drawn.
      mean_calls, budget: texts that the run read for an attacked example, and the most that it may.
      changed, similarity, encoder, words: the bounds, and where replacements come from.
    """

    examples: int
    right: int
    flipped: int
    accuracy_before: float
    accuracy_after: float
    mean_calls: float
    budget: int
    changed: float
    similarity: float
    encoder: str
    words: str
    failed: list[FailedCase]


class Behavior(TypedDict):
    """See `robustness.running`."""

    suite: str
    language: str
    split: str
    seed: int
    examples: int
    tests: list[BehaviorResult]
    left_out: list[LeftOut]
    adversarial: NotRequired[Attacked]
