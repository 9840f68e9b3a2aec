"""Counterfactuals: they change the answer, cannot be smaller, stay within the budget, and say it if there is none.

And the verb that shows them: `instructrec_jax.explanation.asked`, `instructrec_jax.explanation.files`,
`instructrec_jax.explanation.shown_answers` and `instructrec_jax.answering.answer_options`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import task_cases
from helpers import task_config
from task_cases import examples_of
from tiny_runs import tiny_run, untrained_run
from tiny_thesauri import write_wordnet

from instructrec_jax import explain as verb
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.explanation import counterfactual
from instructrec_jax.explanation.changes import Change, changed
from instructrec_jax.explanation.counterfactual import Counterfactual, Counterfactuals
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.answers import Answer, LabelAnswer
from instructrec_jax.train import train

networks = task_cases.networks  # a fixture
WEIGHTS = {"lovely": 2.0, "good": 1.5, "fine": 1.0, "film": 0.25, "dull": -2.0, "movie": -3.0}


@pytest.fixture(autouse=True)
def no_thesaurus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counterfactual, "WORDNET", Path("/nowhere"))


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    settings = {"steps": 60, "evaluation__compare": False, "evaluation__every": 0, "checkpoint__every": 60}
    return Run.open(train(tiny_run("classification", checkpoint, folder, **settings)))


class Additive:
    """In place of a run's answers: "good" where the weights of a text's words add up to more than 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, search: Counterfactuals) -> None:
        self.read = 0
        asker = search.asker

        class Asked:
            example = staticmethod(asker.example)
            answers = staticmethod(self.answers)

        monkeypatch.setattr(search, "asker", Asked())

    def answers(self, examples: Sequence[Example], skip: bool = False) -> tuple[list[Answer | None], list[Any]]:
        self.read += len(examples)
        return [self.answer(example) for example in examples], []

    @staticmethod
    def answer(example: Example) -> Answer | None:
        if not example.instruction:
            return None
        value = sum(WEIGHTS.get(word, 0.0) for word in example.instruction.lower().split())
        good = 1 / (1 + 2.0 ** (1 - value))
        return LabelAnswer("good" if good > 0.5 else "bad", {"good": good, "bad": 1 - good})


def searched(run: Run, monkeypatch: pytest.MonkeyPatch, text: str, **settings: Any) -> tuple[Counterfactual, Additive]:
    search = Counterfactuals(run, **settings)
    answers = Additive(monkeypatch, search)
    (found,) = search.explain([text])
    return found, answers


def test_changes_that_are_not_needed_are_undone(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the lovely good fine film is a story"
    found, answers = searched(trained, monkeypatch, text)
    assert found.after is not None and (found.before.prediction, found.after.prediction) == ("good", "bad")
    assert {change.what for change in found.changes} == {"lovely", "good", "fine"} and found.minimal
    assert found.changed_text == "the film is a story" and found.calls == answers.read
    for number in range(len(found.changes)):
        kept = [change for n, change in enumerate(found.changes) if n != number]
        assert Additive.answer(changed(Example(instruction=text), kept)).label == "good"  # type: ignore[union-attr]
    one, _ = searched(trained, monkeypatch, "a good story")
    assert one.changes == (Change("word", "good"),) and one.after.numbers["bad"] > 0.5  # type: ignore[union-attr]


def test_pruning_leaves_out_a_large_effect(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first words by effect, those that later ones make needless are undone."""

    def answer(example: Example) -> Answer:
        words = set(example.instruction.split())
        good = 0.9 - 0.1 * ("a1" not in words) - 0.05 * ("b1" not in words) - 0.04 * ("c1" not in words)
        good = 0.1 if not words & {"b1", "c1"} else good  # a1 is of no use
        return LabelAnswer("good" if good > 0.5 else "bad", {"good": good, "bad": 1 - good})

    monkeypatch.setattr(Additive, "answer", staticmethod(answer))
    found, _ = searched(trained, monkeypatch, "a1 b1 c1 here")  # a text without any word is not asked about
    assert {change.what for change in found.changes} == {"b1", "c1"} and found.minimal


def test_synonyms_are_tried(trained: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    thesaurus = str(write_wordnet(tmp_path / "wordnet"))
    found, _ = searched(trained, monkeypatch, "a lovely good film", thesaurus=thesaurus)
    assert found.changes == (Change("word", "film", "movie"),) and found.changed_text == "a lovely good movie"


@pytest.mark.parametrize("budget", [3, 8, 12, 20])
def test_the_budget_holds(budget: int, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found, answers = searched(trained, monkeypatch, "the lovely good fine film is a story", budget=budget)
    assert found.calls == answers.read <= budget
    if found.after is None:
        assert found.reason is not None and "--budget" in found.reason
    assert (budget == 20) == (found.after is not None and found.minimal)


def test_none_is_said(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = searched(trained, monkeypatch, "lovely")  # the text cannot be read without it
    assert found.after is None and found.changes == () and "none was found" in str(found.reason)
    with pytest.raises(BadExample, match="record 0.*answers 'good' already"):
        searched(trained, monkeypatch, "lovely", to="good")
    with pytest.raises(BadExample, match="--to is 'peace'"):
        searched(trained, monkeypatch, "lovely", to="peace")
    with pytest.raises(ValueError, match="--budget is 2"):
        Counterfactuals(trained, budget=2)


def test_a_real_run_is_confirmed_by_its_predictions(trained: Run) -> None:
    texts = ["a good film about war and love", "old love space crime", "the music of a bright war film war"]
    found = Counterfactuals(trained).explain(texts)
    flipped = [each for each in found if each.after is not None]
    assert flipped
    for each in flipped:
        assert each.after is not None and each.changed_text is not None
        before, after = trained.predict([each.text])[0], trained.predict([each.changed_text])[0]
        assert isinstance(before, LabelAnswer) and isinstance(after, LabelAnswer)
        assert (before.label, after.label) == (each.before.prediction, each.after.prediction)
        assert before.label != after.label
        assert each.after.numbers[after.label] == pytest.approx(after.probabilities[after.label], abs=1e-5)
        proper = chain.from_iterable(combinations(each.changes, n) for n in range(len(each.changes) - 1, -1, -1))
        fewer = [kept for kept in proper if len(kept) == len(each.changes) - 1]
        shorter = [changed(Example(instruction=each.text), kept) for kept in fewer]
        assert all(answer.label == before.label for answer in trained.predict(shorter))  # type: ignore[union-attr]
    labels = trained.task.labels
    to = next(label for label in labels if label != found[0].before.prediction)
    for each in Counterfactuals(trained, to=to).explain(texts[:1]):
        assert each.after is None or each.after.prediction == to


def run_of(name: str, networks: Any, folder: Path) -> Run:
    network = "llama" if name == "language_model" else "bert"
    task = task_config(name, folder / "catalogue")
    return Run.open(untrained_run(folder / "run", task, networks[network, False], 192 if network == "llama" else 64))


@pytest.mark.parametrize("name", ["sequence", "retrieval", "similarity", "multilabel", "language_model"])
def test_other_tasks(name: str, networks: Any, tmp_path: Path) -> None:
    run = run_of(name, networks, tmp_path)
    asked = [replace(e, output=None) for e in examples_of(name) if len(e.history) > 2 or name != "sequence"][:2]
    for example, found in zip(asked, Counterfactuals(run, budget=60).explain(asked), strict=True):
        assert found.calls <= 60 and (found.after is None) == (found.reason is not None)
        if found.after is not None:
            assert found.after.prediction != found.before.prediction and found.changes
            if name == "sequence":
                assert found.after.prediction not in {title.partition(" (")[0] for title in found.history}
                assert found.changed_history is not None
        assert found.text and found.history == tuple(f"title {i.removeprefix('item-')}" for i in example.history)


def test_a_history_changes_the_item(networks: Any, tmp_path: Path) -> None:
    run = run_of("sequence", networks, tmp_path)
    asked = [replace(e, output=None) for e in examples_of("sequence") if len(e.history) > 1]
    found = [each for each in Counterfactuals(run).explain(asked) if each.after is not None]
    assert any(change.kind == "item" for each in found for change in each.changes)


@pytest.mark.parametrize("name", ["regression", "token_classification"])
def test_a_task_without_other_answers_is_named(name: str, networks: Any, tmp_path: Path) -> None:
    with pytest.raises(BadExample, match="record 0: no counterfactual: --counterfactual looks for"):
        Counterfactuals(run_of(name, networks, tmp_path)).explain([replace(examples_of(name)[1], output=None)])


def test_the_verb(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(trained.path), tmp_path / "out.jsonl"
    write_jsonl(tmp_path / "in.jsonl", [{"instruction": "a good film about war and love"}, {"instruction": "love"}])
    verb.main([path, "--input", str(tmp_path / "in.jsonl"), "--counterfactual", "--out", str(out)])
    first, second = read_jsonl(out)
    assert second["after"] is None and second["reason"]
    verb.main([path, "a good film about war and love", "--counterfactual"])
    said = capsys.readouterr().out
    assert "before: " in said and ("after: " in said) == (first["after"] is not None)
    with pytest.raises(ValueError, match="name it by --to"):
        verb.main([path, "a", "--counterfactual", "--target", "war"])
    with pytest.raises(ValueError, match="does not exist"):
        verb.main([path, "a", "--counterfactual", "--thesaurus", str(tmp_path / "none")])
