"""Every task is explained, or says that it cannot be: what the scores are of, and that they add up.

(`instructrec_jax.explain`, `instructrec_jax.tasks.generation.written_objectives`)
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_cases
from explained_runs import run_of
from task_cases import SLOW, examples_of

from instructrec_jax import explain as verb
from instructrec_jax.data.example import BadExample
from instructrec_jax.explanation.explain import Explainer, methods_of
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.generation import written_objectives
from instructrec_jax.tasks.objective import Choice

networks = task_cases.networks  # a fixture
EXPLAINED = {
    "classification": "logit",
    "multilabel": "logit",
    "regression": "number",
    "token_classification": "logit",
    "similarity": "logit",
    "retrieval": "score",
    "reranker": "score",
    "language_model": "log-probability",
    "language_model, encoder–decoder": "log-probability",
}
ALIKE = ("multilabel", "regression", "similarity", "language_model, encoder–decoder")  # with -m slow only


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW) if name in ALIKE else name for name in EXPLAINED])
def test_scores_add_up(name: str, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_objectives, "EXPLAINED", 2)
    example = replace(examples_of(name)[1], output=None)
    choice = Choice(target="item-2" if name == "reranker" else None)
    methods = ("integrated", "gradient", "occlusion")
    found = Explainer(Run.open(run_of(name, networks, tmp_path)), methods, most=32).explain([example], choice)
    for integrated, gradient, occlusion in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert integrated.unit == EXPLAINED[name] and integrated.words == occlusion.words == gradient.words
        assert integrated.value == pytest.approx(occlusion.value, abs=1e-4)
        assert integrated.converged == (integrated.completeness_error <= 0.01)
        assert any(gradient.scores) and any(occlusion.scores)
    if not name.startswith("language_model"):  # whose random networks hardly read the prompt: differences are rounding
        assert any(each.converged for each in found[::3])


def test_a_contrast_is_a_difference(networks: Any, tmp_path: Path) -> None:
    explainer = Explainer(Run.open(run_of("classification", networks, tmp_path)), ("occlusion",))
    text = "a good film about war"

    def scores(target: str, against: str | None = None) -> Any:
        (found,) = explainer.explain([text], Choice(target, against))
        return np.array([found.value, *(score or 0 for score in found.scores)])

    np.testing.assert_allclose(scores("war", "love"), scores("war") - scores("love"), atol=1e-6)
    for choice, said in [
        (Choice("peace"), "no label 'peace': choose from 'love', 'war'"),
        (Choice("war", "war"), "both 'war'"),
        (Choice(word="film"), "--word is for tasks with an output per word"),
    ]:
        with pytest.raises(BadExample, match=said):
            explainer.explain([text], choice)
    for bad, said in [("", "text"), ("?!", "no word"), ("film " * 100, "data.max_length is 64")]:
        with pytest.raises(BadExample, match=said):
            explainer.explain([bad])


def test_the_verb_writes_what_it_shows(
    networks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("classification", networks, tmp_path, data__truncate="right", data__max_length=8)
    write_jsonl(tmp_path / "in.jsonl", [{"instruction": "a good film about war"}, {"instruction": "a dull book"}])
    write_jsonl(tmp_path / "bad.jsonl", [{"instruction": "a good film"}, {"instruction": 3}])
    out = tmp_path / "out.jsonl"
    verb.main([str(run), "--input", str(tmp_path / "in.jsonl"), "--out", str(out), "--method", "occlusion"])
    first, second = read_jsonl(out)
    assert second["words"] == ["a", "dull", "book"] and len(second["scores"]) == 3
    assert set(first["unread"]) and not set(first["unread"]) & set(first["words"])  # 8 tokens: cut
    verb.main([str(run), "a good film about war", "--method", "occlusion"])
    said = capsys.readouterr().out
    assert f"why '{first['target']}'" in said and "not read: " in said and "█" in said + "█"
    for arguments, error in [
        ([str(run)], "give one of TEXT"),
        ([str(run), "a film", "--out", str(out)], "exists already"),
        ([str(tmp_path), "a film"], "not a run directory"),
        ([str(run), "a film", "--max_steps", "9"], "a power of two"),
        ([str(run), "a film", "--out", str(tmp_path / "out.txt")], "end in .jsonl or .html"),
        ([str(run), "--image", str(tmp_path / "none.png")], "none.png cannot be read"),
        ([str(run), "--faithful", "--method", "occlusion"], "--method is for scores of words, and --faithful tests"),
        ([str(run), "a film", "--limit", "5"], "--limit is for --faithful: leave it out here"),
        ([str(run), "a film", "--budget", "5"], "--budget is for --counterfactual"),
        ([str(run), "a film", "--counterfactual", "--projection", "64"], "--projection is for --examples"),
        ([str(run), "a film", "--examples", "2", "--baseline", "pad"], "--baseline is for scores of words"),
        ([str(run), "--input", str(tmp_path / "bad.jsonl")], "bad.jsonl, line 2, field 'instruction': wrong type"),
        ([str(run), "--faithful"], "at least two examples in data.validation"),
    ]:
        with pytest.raises(ValueError, match=error):
            verb.main(arguments)


@pytest.mark.parametrize("name", ["masked_lm", "span"])
def test_a_task_that_cannot_be_explained_is_named(name: str, networks: Any, tmp_path: Path) -> None:
    run = Run.open(run_of(name, networks, tmp_path))
    with pytest.raises(ValueError, match="cannot explain|predicts nothing"):
        Explainer(run, ("occlusion",)).explain([replace(examples_of(name)[1], output=None)])


def test_an_item_of_the_history_is_scored_by_leaving_it_out(networks: Any, tmp_path: Path) -> None:
    run = Run.open(run_of("sequence", networks, tmp_path))
    assert methods_of(run) == ("occlusion",)
    with pytest.raises(ValueError, match="the task sequence has no gradients of words: only occlusion"):
        Explainer(run)
    explainer, example = Explainer(run, ("occlusion",)), replace(examples_of("sequence")[3], output=None)
    (found,) = explainer.explain([example])
    assert len(found.history) == len(example.history) == 3 and found.words[:2] == ("a", "film")
    assert found.to_record()["history"] == [{"item": name, "score": score} for name, score in found.history]
    (asked,) = explainer.of_example(explainer.asker.example(example, "here"), Choice())
    gone = run.task.encode([run.task.unanswered(replace(example, history=example.history[1:]))])[0]
    whole, left = explainer.values([(asked.objective, asked.encoded), (asked.objective, gone)])
    assert found.history[0][1] == pytest.approx(whole - left, abs=1e-5)


@pytest.mark.parametrize("name", ["retrieval", pytest.param("sequence", marks=SLOW)])
def test_the_item_is_the_one_that_the_run_answers_with(name: str, networks: Any, tmp_path: Path) -> None:
    """No item of the history, which the run hides, and of candidates, where they are given."""
    run = Run.open(run_of(name, networks, tmp_path))
    plain = replace(examples_of(name)[3], output=None, history=("item-0",))
    (best,) = run.predict([plain], k=1)
    seen = replace(plain, history=("item-0", best.items[0].id))
    others = tuple(item for item in run.task.catalogue.ids if item not in seen.history)[-3:]
    asked = [seen, replace(seen, candidates=others)]
    said = [answer.items[0].title for answer in run.predict(asked, k=1)]
    found = Explainer(run, ("occlusion",)).explain(asked)
    assert [each.target for each in found] == said and best.items[0].title not in said

    hidden = replace(plain, candidates=("item-0",))
    with pytest.raises(BadExample, match="recommends no item here"):
        Explainer(run, ("occlusion",)).explain([hidden])
