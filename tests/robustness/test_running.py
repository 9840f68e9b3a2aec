"""The default suite on tiny runs of every family: unchanged = evaluated, counts add up, and intervals are Wilson's."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import task_config
from task_cases import CASES, LENGTH, SLOW, examples_of, networks, settings_of
from tiny_runs import compressed_run, untrained_run

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.compression.quantization import Quantization
from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.parsing import parse_yaml
from instructrec_jax.robustness.checking import default_suite
from instructrec_jax.robustness.expectations import NotForThisRun, read_expectation
from instructrec_jax.robustness.perturbations import Perturbation
from instructrec_jax.robustness.running import SHOWN, Asked, Case, Examiner, behavior_of, interval
from instructrec_jax.robustness.suite import BehaviorTest, Suite, read_suite_of
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.answers import LabelAnswer, NumberAnswer

__all__ = ["networks"]  # a fixture
FAST = ("classification", "regression", "token_classification", "span", "sequence", "multitask")
TESTED = (
    *FAST,
    *("multilabel", "extractive_summarization", "similarity", "choice", "retrieval", "reranker"),
    *("language_model", "question_answering", "translation", "language_model_ranking"),
)


def opened(name: str, networks: Any, folder: Path, how: str = "") -> Run:
    """An untrained run of a case, whose data.train and data.test are its examples. how: "", compressed or lora."""
    examples = examples_of(name)
    write_jsonl(folder / "test.jsonl", [{"output": None} | example.to_record() for example in examples])
    source = [SourceConfig(path=str(folder / "test.jsonl"))]
    config = task_config(name.partition(",")[0], folder / "catalogue", **settings_of(name, networks))
    length = 64 if CASES[name].network == "bert" else LENGTH
    network = networks[CASES[name].network, False]
    lora = {"lora": LoraConfig(rank=2)} if how == "lora" else {}
    path = untrained_run(folder / "run", config, network, length, data__test=source, data__train=source, **lora)
    if how == "compressed":
        path = compressed_run(path, folder / "small", Quantization("nf4"))
    cut = "left" if name == "language_model_ranking" else "right"
    run = Run.open(path, ["--data.truncate", cut] if name != "span" else [])
    if run.task.writes:
        run.task.generation = GenerationConfig(max_new_tokens=4)
    return run


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=SLOW) for name in TESTED])
def test_the_default_suite_runs_on_every_family(name: str, networks: Any, tmp_path: Path) -> None:
    run = opened(name, networks, tmp_path)
    examiner = Examiner(run, "test", 500, 0)
    suite = default_suite(run, examiner)
    found = behavior_of(examiner, suite)
    assert found["examples"] == len(examples_of(name)) and found["language"] == "en"
    assert {each["name"] for each in (*found["tests"], *found["left_out"])} == {test.name for test in suite.tests}
    by_name = {test.name: test for test in suite.tests}
    for each in found["tests"]:
        test = by_name[each["name"]]
        drawn = [e for e in examiner.originals if not test.task or e.task == test.task]
        asked = len(test.given) if test.kind == "minimum" else len(drawn)
        assert each["cases"] + each["unchanged"] + each["unread"] == asked
        assert len(each["failed"]) == min(SHOWN, each["failures"]) and each["failures"] <= each["cases"]
        assert (each["rate"] is None) == (each["cases"] == 0)
    assert sum(each["cases"] for each in found["tests"]) > 0


@pytest.mark.parametrize("name", FAST)
def test_an_unchanged_example_has_the_answer_of_an_evaluation(name: str, networks: Any, tmp_path: Path) -> None:
    run = opened(name, networks, tmp_path)
    examiner = Examiner(run, "test", 500, 0)
    measured = run.task.score(run.predictor, run.data.cases(run.task, "test")).predictions
    answers = examiner.ask(examiner.originals)[0]
    own = {record["id"]: record["prediction"] for record in measured}
    assert len(own) == len(answers)
    for example, answer in zip(examiner.originals, answers, strict=True):
        assert answer is not None
        said = answer.to_record()["prediction"]
        if name == "sequence":  # which an evaluation lists longer
            assert own[example.id][:10] == said
        else:
            assert own[example.id] == (pytest.approx(said, abs=1e-4) if isinstance(answer, NumberAnswer) else said)


@pytest.mark.parametrize("how", ["compressed", "lora"])
def test_compressed_runs_and_adapters_answer_as_they_are(how: str, networks: Any, tmp_path: Path) -> None:
    run = opened("classification", networks, tmp_path, how)
    tests = "- {name: a, kind: invariance, perturb: {distractor: {sentences: [dull]}}}"
    found = behavior_of(Examiner(run, "test", 5, 0), suite_of(tests))
    texts = [example.instruction for example in Examiner(run, "test", 5, 0).originals]
    labels = [run.predict([text, f"{text} dull"]) for text in texts]
    moved = sum(before.label != after.label for before, after in labels)  # type: ignore[attr-defined, misc]
    assert found["tests"][0]["cases"] == 5 and found["tests"][0]["failures"] == moved


# ---- results by hand -----------------------------------------------------------------------------------


def suite_of(tests: str, more: str = "") -> Suite:
    return read_suite_of(parse_yaml(f"tests:\n{tests}\n{more}", "x"), "x", "en")


@pytest.fixture
def examiner(networks: Any, tmp_path: Path) -> Examiner:
    return Examiner(opened("classification", networks, tmp_path), "test", 500, 0)


def test_failures_are_those_of_the_answers(examiner: Examiner) -> None:
    """Against `Run.predict`, one text at a time."""
    tests = """
- {name: a, kind: invariance, perturb: {distractor: {sentences: [dull old war]}}}
- {name: b, kind: minimum, template: "{x} film", slots: {x: [bad, good, dull, new, old]}, expect: {not: war}}
- {name: c, kind: minimum, examples: [{text: a book, output: love}, {text: an old book, output: war}]}
- {name: d, kind: directional, perturb: {truncation: {keep: 0.5}}, expect: {answer: changed}}
"""
    found = behavior_of(examiner, suite_of(tests))
    a, b, c, d = found["tests"]
    run = examiner.run

    def label(text: str) -> str:
        return run.predict(text)[0].label  # type: ignore[union-attr]

    texts = [example.instruction for example in examiner.originals]
    assert a["failures"] == sum(label(text) != label(f"{text} dull old war") for text in texts) and a["cases"] == len(
        texts
    )
    assert b["failures"] == sum(label(f"{x} film") == "war" for x in ("bad", "good", "dull", "new", "old"))
    assert c["failures"] == (label("a book") != "love") + (label("an old book") != "war") and c["cases"] == 2
    assert d["cases"] + d["unchanged"] == len(texts)
    if a["failed"]:
        assert a["failed"][0]["after"].endswith("dull old war") and a["failed"][0]["before"] in texts


def test_limits(examiner: Examiner) -> None:
    test = '- {name: a, kind: minimum, template: "{x} film", slots: {x: [bad, good]}, expect: {one_of: [love, war]}}'
    rate = behavior_of(examiner, suite_of(test))["tests"][0]["rate"]
    assert rate is not None
    never = test.replace("one_of: [love, war]", "output: unheard").replace("[bad, good]", "[bad]")
    with pytest.raises(ValueError, match="x: test 'a' is not for this run: the run has no label 'unheard'"):
        behavior_of(examiner, suite_of(never))
    left = behavior_of(
        examiner, suite_of(never.replace("kind", "optional: true, kind") + f"\n{test.replace(' a', ' b')}")
    )
    assert [each["name"] for each in left["left_out"]] == ["a"] and [each["name"] for each in left["tests"]] == ["b"]
    for limit, own, over in ((None, None, False), (0.0, None, rate > 0), (1.0, 0.0, rate > 0), (0.0, 1.0, False)):
        lines = test if own is None else test.replace("kind", f"limit: {own}, kind")
        suite = suite_of(lines, "" if limit is None else f"limit: {limit}")
        assert behavior_of(examiner, suite)["tests"][0]["over"] == over
        assert not behavior_of(examiner, suite, 1.0)["tests"][0]["over"]  # the command line's, for all


def test_what_cannot_be_tested_is_named(examiner: Examiner, networks: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no test of x has a case"):
        behavior_of(examiner, suite_of("- {name: a, kind: invariance, perturb: options}"))
    with pytest.raises(ValueError, match="'a' is not for this run: no example has the task 'qa'"):
        behavior_of(examiner, suite_of("- {name: a, kind: invariance, perturb: typos, task: qa}"))
    with pytest.raises(ValueError, match="data.validation lists no sources"):
        Examiner(examiner.run, "validation", 5, 0)
    strict = Examiner(Run.open(examiner.run.path), "test", 5, 0)  # longer texts are errors
    long = suite_of(f"- {{name: a, kind: minimum, examples: [{'word ' * 99}], expect: {{not: war}}}}")
    with pytest.raises(ValueError, match="test 'a' is not for this run: the run cannot read 'word word .*max_length"):
        behavior_of(strict, long)
    either = [replace(long.tests[0], optional=True), *suite_of("- {name: b, kind: invariance, perturb: typos}").tests]
    assert "max_length" in behavior_of(strict, replace(long, tests=tuple(either)))["left_out"][0]["why"]
    longer = f"- {{name: b, kind: invariance, perturb: {{distractor: {{sentences: [{'word ' * 99}]}}}}}}"
    whole = "- {name: c, kind: invariance, perturb: {case: {to: upper}}}"
    unread = behavior_of(strict, suite_of(f"{longer}\n{whole}"))["tests"]
    assert [each["unread"] for each in unread] == [5, 0] and unread[0]["rate"] is None


RANK = "{name: a, kind: directional, perturb: {case: {to: upper}}, expect: {rank: {item: item-99, change: not_up}}}"


@pytest.mark.parametrize(
    ("name", "test", "said"),
    [
        ("similarity", "{name: a, kind: minimum, examples: [x], expect: {not: posi}}", "has no candidate 'posi'"),
        ("retrieval", RANK, "the catalog has no item 'item-99'"),
        ("retrieval", "{name: a, kind: minimum, examples: [x], expect: {not: film}}", "the catalog has no item 'film'"),
        ("retrieval", "{name: a, kind: minimum, examples: [{text: x, output: film}]}", "the catalog has no item"),
        ("retrieval", "{name: a, kind: minimum, examples: [x], expect: {not: [{x: 1}]}}", "no item .* as texts"),
        ("regression", "{name: a, kind: minimum, examples: [x], expect: {not: many}}", "'many' is no number"),
    ],
)
def test_a_name_that_no_answer_has_is_no_success(
    name: str, test: str, said: str, networks: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"'a' is not for this run: .*{said}"):
        behavior_of(Examiner(opened(name, networks, tmp_path), "test", 5, 0), suite_of(f"- {test}"))


def test_the_labels_of_every_subtask_are_looked_at() -> None:
    """Those of the first answer alone let a label that others have not got never rise."""
    expect = {"probability": {"label": "love", "change": "not_up"}}
    test = BehaviorTest("a", "directional", read_expectation("directional", expect, False), Perturbation("case"))
    answers = [LabelAnswer("love", {"love": 1.0, "war": 0.0}), LabelAnswer("good", {"good": 1.0, "bad": 0.0})]
    originals = examples_of("classification")[:2]
    cases = [Case(example, number) for number, example in enumerate(originals)]
    with pytest.raises(NotForThisRun, match="no label 'love': it has good, bad"):
        Asked(test, cases, 0, originals, answers, answers, ["", ""]).judged(None)


def test_popularity_is_that_of_the_training_data(networks: Any, tmp_path: Path) -> None:
    run = opened("sequence", networks, tmp_path)
    order = Examiner(run, "test", 500, 0).world("en").by_popularity()
    counts = {item: 0 for item in order}
    for example in examples_of("sequence"):
        for item in (*example.history, str(example.output)):
            counts[item] += 1
    assert len(order) == 12 and [counts[item] for item in order] == sorted(counts.values(), reverse=True)


@pytest.mark.parametrize(("failures", "cases"), [(0, 1), (1, 1), (0, 40), (3, 40), (500, 1000)])
def test_intervals_are_wilsons(failures: int, cases: int) -> None:
    z, share = 1.959963984540054, failures / cases
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z / (1 + z * z / cases) * math.sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases))
    rate, low, high = interval(failures, cases)
    assert rate == share and low == pytest.approx(max(middle - half, 0), abs=1e-12)
    assert high == pytest.approx(min(middle + half, 1), abs=1e-12)
    assert interval(0, 0) == (None, None, None)


def test_results_are_a_function_of_the_seed(examiner: Examiner) -> None:
    tests = "- {name: a, kind: invariance, perturb: {typos: {rate: 0.5}}}"
    one, same, other = (behavior_of(examiner, suite_of(tests, f"seed: {seed}")) for seed in (1, 1, 2))
    assert one == same and other["seed"] == 2
    world = examiner.world("en")
    perturb = suite_of(tests).tests[0].perturb
    assert perturb is not None
    example = Example(instruction="a remarkably bright film about something")
    assert perturb(example, world, "1", "a") != perturb(example, world, "2", "a")
