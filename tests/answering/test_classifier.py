"""Classifiers of several runs and draws, with runs whose outputs are known. (Trained ones are in test_watch.py.)"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from instructrec_jax.answering import classifier as module
from instructrec_jax.answering.classifier import Classifier, encode_one, open_run_of
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.tasks.averaging import Mixture
from instructrec_jax.tasks.base import Encoded, TaskContext


class Task:
    """Reads up to five words."""

    def __init__(self, labels: Sequence[str] = ("a", "b", "c")):
        self.labels, self.seen = list(labels), list[Example]()
        self.context = TaskContext(None, 5)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        (example,) = examples
        self.seen.append(example)
        count = len(f"{example.instruction} {example.input or ''}".split())
        if "\\" in example.instruction:
            raise ValueError("example 'here' cannot be read.")
        return [Encoded(Text(np.full(count, count, np.int32)), 0, example)] if count <= 5 else []


class Predictor:
    """The logits of a text: its number of words, by label; a draw adds its seed."""

    reads = None

    def __init__(self, scale: float, dropout: bool = True):
        self.scale, self.dropout, self.drawn = scale, dropout, list[tuple[int, Any]]()
        self.each = (self,)

    def __call__(self, texts: Sequence[Text]) -> list[np.ndarray]:
        return [np.array([1.0, 2.0, 3.0]) * self.scale * len(text.tokens) for text in texts]

    def draw(self, texts: Sequence[Text], seed: int, numbers: Any) -> list[np.ndarray]:
        self.drawn.append((int(seed), numbers))
        noise = np.random.default_rng(int(seed)).normal(size=3) if self.dropout else 0
        return [each + noise for each in self(texts)]


def classifier(monkeypatch: pytest.MonkeyPatch, *runs: Any, **settings: Any) -> Classifier:
    for number, each in enumerate(runs):
        each.path = Path(f"run {number}")
    opened = iter(runs)
    monkeypatch.setattr(module, "open_run_of", lambda path, *tasks: next(opened))
    monkeypatch.setattr(module, "ensemble_of", together)
    return Classifier([each.path for each in runs], **settings)


def run(scale: float = 1.0, labels: Sequence[str] = ("a", "b", "c"), **settings: Any) -> Any:
    predictor = Predictor(scale, **settings)
    return SimpleNamespace(task=Task(labels), predictor=predictor, kind="classification", mixture=None, members=())


def together(runs: Sequence[Any]) -> Any:
    predictor = SimpleNamespace(each=[each.predictor for each in runs])
    return SimpleNamespace(
        task=runs[0].task,
        predictor=predictor,
        mixture=Mixture("probability", (0.25, 0.75), (1.0, 2.0)),
        members=runs,
        calibration=None,
    )


def test_members_have_weights_and_temperatures(monkeypatch: pytest.MonkeyPatch) -> None:
    both = classifier(monkeypatch, run(), run(scale=3))
    logits = both.logits([both.encode("one", "x"), both.encode("one two", "y")])
    np.testing.assert_array_equal(logits, [[[1, 2, 3], [2, 4, 6]], [[3, 6, 9], [6, 12, 18]]])
    mean = np.tensordot([0.25, 0.75], both.shares(logits), 1)
    np.testing.assert_allclose(probabilities(both.mean(logits)), mean, rtol=1e-12)
    logits = logits / np.array([1, 2])[:, None, None]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(both.members_of([both.encode("one", "x"), both.encode("one two", "y")]), shares)
    assert both.members == 2 and both.labels == ["a", "b", "c"]


def test_draws_have_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run(), run()
    drawing = classifier(monkeypatch, first, second, draws=3, seed=5)
    found = drawing.logits([drawing.encode("one", "x")], numbers=[9])
    assert found.shape == (6, 1, 3) and drawing.members == 6 and len(np.unique(found[:, 0, 0])) == 6
    seeds = [seed for each in (first, second) for seed, numbers in each.predictor.drawn if numbers == [9]]
    assert len(set(seeds)) == 6
    again = classifier(monkeypatch, run(), run(), draws=3, seed=5)
    np.testing.assert_array_equal(again.logits([again.encode("one", "x")], numbers=[9]), found)
    other = classifier(monkeypatch, run(), run(), draws=3, seed=6)
    assert not np.array_equal(other.logits([other.encode("one", "x")], numbers=[9]), found)


@pytest.mark.parametrize("draws", [-1, 1])
def test_a_number_of_draws_that_says_nothing_is_named(draws: int) -> None:
    with pytest.raises(ValueError, match=f"--draws is {draws}"):
        Classifier("run", draws=draws)


def test_draws_without_dropout_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    still = classifier(monkeypatch, run(dropout=False), draws=2)
    with pytest.raises(ValueError, match="--draws.*dropout"):
        still.logits([still.encode("one", "x")])


def test_outputs_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = classifier(monkeypatch, run(scale=float("nan")))
    with pytest.raises(ValueError, match="finite"):
        broken.logits([broken.encode("one", "x")])


def test_the_instruction_stands_before_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked = run(), run()
    classifier(monkeypatch, plain).encode("a text", "here")
    classifier(monkeypatch, asked, instruction="Sort:").encode("a text", "here")
    assert (plain.task.seen[0].instruction, plain.task.seen[0].input) == ("a text", None)
    assert (asked.task.seen[0].instruction, asked.task.seen[0].input) == ("Sort:", "a text")


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "text"), (" ", "text"), ("a\x00b", "NUL"), ("w " * 6, "line 3.*data.max_length"), ("\\", "line 3.*cannot")],
)
def test_a_text_that_cannot_be_used_is_named(text: str, named: str) -> None:
    task: Any = Task()
    with pytest.raises(BadExample, match=named) as caught:
        encode_one(task, text, "a", where="line 3")
    assert caught.value.field == "text"


def test_cut_texts_are_counted_once_for_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    both = classifier(monkeypatch, run(), run())
    assert both.cut == 0
    both.run.task.context.count("texts cut", 3)
    assert both.cut == 3


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name} is not a run directory"):
        open_run_of(tmp_path, "classification")
    monkeypatch.setattr(module, "require_run", lambda path: None)
    monkeypatch.setattr(module.Run, "open", lambda path: SimpleNamespace(path=path, kind="regression"))
    with pytest.raises(ValueError, match="regression.*classification"):
        open_run_of(tmp_path, "classification")
