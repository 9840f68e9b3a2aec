"""The hybrid that training chose: what `recommend`, `evaluate` and the service answer with, and when they do not."""

from pathlib import Path
from typing import Any

import pytest
from helpers import task_config
from tiny_runs import untrained_run

from instructrec_jax.answering.comparison import Beside, evaluate
from instructrec_jax.answering.ranker import BaselineRanker, Ranker, keep_fusion
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Request
from instructrec_jax.files import write_jsonl
from instructrec_jax.ranking.fusion import Fusion
from instructrec_jax.runs.run import Run
from instructrec_jax.service.models import open_service
from instructrec_jax.service.scenarios import Recommending
from instructrec_jax.service.settings import ModelConfig, ServeConfig

ASKED = [Request(instruction="a good film about war")]


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that training left with a hybrid with BM25."""
    folder = tmp_path_factory.mktemp("hybrid")
    made = untrained_run(folder / "run", task_config("retrieval", folder / "catalogue"), checkpoint, 64)
    first = Ranker.open(made)
    keep_fusion(first, BaselineRanker(first.task, "BM25"), Fusion("BM25", 0.4), 9, chosen=True)
    return made


def best(run: Path, **how: Any) -> list[tuple[str, float]]:
    (answer,) = Recommender(run, **how).recommend(ASKED, k=6)
    assert answer.error is None
    return [(r.item, r.score) for r in answer.recommendations]


def test_it_answers_unless_something_else_is_asked_for(run: Path, tmp_path: Path) -> None:
    chosen, alone = best(run), best(run, hybrid="none")
    assert chosen == best(run, hybrid="BM25") == best(run, hybrid="BM25", weight=0.4) != alone
    assert best(run, hybrid="BM25", weight=0.0)[0][0] == alone[0][0]
    assert best(run, overrides=["--evaluation.fuse", "false"]) == alone
    write_jsonl(tmp_path / "new.jsonl", [{"title": "A New One", "text": "a film about space"}])
    assert Recommender(run, items=tmp_path / "new.jsonl").fused is None  # a baseline knows nothing of new items


def test_the_service_answers_with_it(run: Path) -> None:
    for hybrid, fused in (("", True), ("none", False)):
        service = open_service(ServeConfig(models=[ModelConfig(str(run), hybrid=hybrid)]))
        answerer = service.models["run"].answerers["recommend"]
        assert isinstance(answerer, Recommending) and (answerer.recommender.fused is not None) == fused
        service.close()


def test_an_evaluation_has_its_row_which_is_what_recommend_answers(run: Path, tmp_path: Path) -> None:
    cases = [{"instruction": "a good film", "output": f"item-{n}", "history": ["item-2"]} for n in (4, 7)]
    write_jsonl(tmp_path / "test.jsonl", cases)
    opened = Run.open(run, ["--data.test", str([str(tmp_path / "test.jsonl")])])
    rows = evaluate(opened, tmp_path / "out", beside=Beside(baselines=False))
    assert [row.name for row in rows] == ["tuned", "hybrid with BM25 (weight 0.40)"]
    said = [record["prediction"][:4] for record in rows[1].scores[""].predictions]
    answers = Recommender(run).recommend([Request(prompt="a good film", history=["id:item-2"])] * 2, k=4)
    assert [[r.item for r in answer.recommendations] for answer in answers] == said
