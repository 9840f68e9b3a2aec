"""Requests with conditions: what `evaluate` measures is what `recommend` answers, and what it must not answer."""

from pathlib import Path

import numpy as np
import pytest
from helpers import SUBJECTS
from tiny_runs import untrained_run

from instructrec_jax.answering.comparison import Beside, evaluate
from instructrec_jax.answering.ranker import BaselineRanker, Ranker, keep_fusion
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Request
from instructrec_jax.answering.served import likeness_to, mixed
from instructrec_jax.data.example import Example
from instructrec_jax.files import write_jsonl
from instructrec_jax.ranking.catalogue import Catalogue, Splits
from instructrec_jax.ranking.fusion import Fusion
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import RerankerConfig, RetrievalConfig, SequenceConfig

ITEMS = 12
TITLES = [f"Story {word}" for word in "Ash Birch Cedar Durian Elm Fir Gum Hazel Ivy Juniper Kauri Larch".split()]
ASKED = [
    "a film about love",
    "a good film, but nothing about war",
    "a bright book from before 2000",
    "a film like Story Cedar but dull",
    "something like Story Durian, only newer",
    "no crime",
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    texts = [f"a film about {SUBJECTS[i % 5]} " + "very " * i for i in range(ITEMS)]
    facts = {"year": [1994 + i for i in range(ITEMS)], "genres": [[SUBJECTS[i % 5]] for i in range(ITEMS)]}
    items = Catalogue([f"i{i}" for i in range(ITEMS)], TITLES, texts, facts)
    items.save(folder)
    nothing = [np.empty(0, np.int32)]
    Splits(["ann"], [np.arange(5, dtype=np.int32)], nothing, nothing).save(folder, items)
    return folder


@pytest.fixture(scope="module")
def run(catalogue: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = RetrievalConfig(catalogue=str(catalogue))
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", task, checkpoint, 64)


def measured(run: Path, out: Path) -> tuple[list[str], list[list[str]]]:
    """Names of the rows, and the predictions of the last one, of the requests ASKED."""
    write_jsonl(out / "test.jsonl", [{"instruction": text, "output": "i0", "history": ["i7"]} for text in ASKED])
    opened = Run.open(run, ["--data.test", str([str(out / "test.jsonl")])])
    rows = evaluate(opened, out / "out", beside=Beside(baselines=False))
    assert [row.served for row in rows] == [False] * (len(rows) - 1) + [True]
    return [row.name for row in rows], [record["prediction"] for record in rows[-1].scores[""].predictions]


def answered(model: Recommender, texts: list[str]) -> list[list[str]]:
    answers = model.recommend([Request(prompt="", instruction=text) for text in texts], k=ITEMS, evidence=False)
    assert [answer.error for answer in answers] == [None] * len(texts)
    return [[r.item for r in answer.recommendations] for answer in answers]


@pytest.mark.parametrize("hybrid", [False, True])
def test_measured_is_served(hybrid: bool, run: Path, tmp_path: Path) -> None:
    """Nothing of a history: its words in an instruction are the caller's matter."""
    if hybrid:
        first = Ranker.open(run)
        keep_fusion(first, BaselineRanker(first.task, "BM25"), Fusion("BM25", 0.4), 9, chosen=True)
    names, said = measured(run, tmp_path)
    assert names[-1].endswith("conditions in words") and ("BM25" in names[-1]) == hybrid
    model = Recommender(run)
    assert (model.fused is not None) == hybrid
    for text, row, answer in zip(ASKED, said, answered(model, ASKED), strict=True):
        assert [item for item in answer if item != "i7"] == row[: len(answer) - ("i7" in answer)], text


def test_what_is_ruled_out_is_not_answered(run: Path) -> None:
    by_name = dict(zip(ASKED, answered(Recommender(run, hybrid="none"), ASKED), strict=True))
    assert len(by_name[ASKED[0]]) == ITEMS
    assert not {f"i{i}" for i in range(ITEMS) if SUBJECTS[i % 5] == "war"} & set(by_name[ASKED[1]])
    assert set(by_name[ASKED[2]]) == {f"i{i}" for i in range(6)}
    assert "i2" not in by_name[ASKED[3]] and len(by_name[ASKED[3]]) == ITEMS - 1
    assert set(by_name[ASKED[4]]) == {f"i{i}" for i in range(4, ITEMS)}


def test_a_title_alone_is_answered_by_likeness(run: Path) -> None:
    model = Recommender(run, hybrid="none")
    likeness = likeness_to(model.first, [3])
    likeness[:4] = -np.inf  # not newer
    (answer,) = model.recommend([ASKED[4]], k=3)
    assert [r.item for r in answer.recommendations] == [f"i{i}" for i in np.argsort(-likeness, kind="stable")[:3]]
    assert "compared with Story Durian (1997), which is left out." in answer.notes


def test_a_comparison_weighs_words_and_likeness_alike(run: Path) -> None:
    """And says how much each word moves an item, as for any request."""
    model = Recommender(run, hybrid="none")
    (answer,) = model.recommend([ASKED[3]], k=ITEMS)
    assert {e.part.text for r in answer.recommendations for e in r.evidence} >= {"dull"}
    own = model.first.scores(model.first.encode([Example(instruction=answer.prompt, output="i0")]))
    allowed = np.arange(ITEMS) != 2
    scores, _ = mixed(own, likeness_to(model.first, [2]), allowed)
    best = [f"i{i}" for i in np.argsort(-np.where(allowed, scores[0], -np.inf), kind="stable")]
    assert [r.item for r in answer.recommendations] == best[:-1]


def test_the_prompt_is_read_as_it_is(run: Path) -> None:
    """The way to have a text understood by the network alone."""
    (answer,) = Recommender(run, hybrid="none").recommend([Request(prompt=ASKED[1])], k=ITEMS)
    assert len(answer.recommendations) == ITEMS and answer.prompt == ASKED[1] and not answer.notes


def test_conditions_meet_those_of_the_request(run: Path) -> None:
    model = Recommender(run, hybrid="none")
    (answer,) = model.recommend([Request(instruction=ASKED[2], where=["genre=war"], exclude=["Story Gum"])], k=9)
    assert [r.item for r in answer.recommendations] == ["i1"]
    (answer,) = model.recommend([Request(instruction=ASKED[2], where=["year>2003"])], k=9)
    assert answer.notes[1] == '"year<2000" would leave no item, so it is not applied.'
    assert {r.item for r in answer.recommendations} == {"i10", "i11"}


def test_a_run_without_vectors_of_items_compares_none(catalogue: Path, checkpoint: Path, tmp_path: Path) -> None:
    small = SequenceConfig(catalogue=str(catalogue), hidden_size=16, history_limit=4)
    reranker = RerankerConfig(catalogue=str(catalogue), protocols=["uni5"])
    for name, task, compares in (("sequence", small, True), ("reranker", reranker, False)):
        path = untrained_run(tmp_path / name, task, checkpoint, 64)
        (answer,) = Recommender(path).recommend([Request(instruction=ASKED[3])], k=3, evidence=False)
        assert answer.error is None and bool(answer.notes) == compares, name


def test_cases_without_conditions_have_no_row(run: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"instruction": ASKED[0], "output": "i0"}])
    opened = Run.open(run, ["--data.test", str([str(tmp_path / "test.jsonl")]), "--evaluation.fuse", "false"])
    assert [row.name for row in evaluate(opened, tmp_path / "out", beside=Beside(baselines=False))] == ["tuned"]
