"""What a generative recommender reads and finds, against the likelihood of each item."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coded_networks import codes_of
from helpers import examples, task_config
from tiny_runs import language_run, untrained_run

from instructrec_jax.data.example import Example
from instructrec_jax.export import main as export
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.ranking.generative import GenerativeTask
from instructrec_jax.train import train

ITEMS = [f"item-{number}" for number in range(12)]


@pytest.fixture(scope="module", params=["codes llama", "codes t5"])
def run(request: pytest.FixtureRequest, coded: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("generative")
    task = task_config("generative", folder / "catalogue", beams=20)
    return Run.open(untrained_run(folder / "run", task, coded[request.param]))


def task_of(run: Run) -> GenerativeTask:
    assert isinstance(run.task, GenerativeTask)
    return run.task


def test_the_prompt_ends_with_the_codes_of_the_history(run: Run) -> None:
    task, ids = task_of(run), codes_of(ITEMS)
    example = Example(instruction="a film", output="item-1", history=("item-7", "item-2"), id="x")
    (encoded,) = task.encode([example])
    tokens = encoded.text.tokens.tolist()
    numbers = run.task.context.tokenizer.convert_tokens_to_ids
    for item in (7, 2):
        codes = [numbers(f"<{level}_{code}>") for level, code in zip("abc", ids.codes[item], strict=True)]
        assert any(tokens[at : at + 3] == codes for at in range(len(tokens)))
    answer = encoded.target.labels[encoded.target.supervised > 0].tolist()
    own = [numbers(f"<{level}_{code}>") for level, code in zip("abc", ids.codes[1], strict=True)]
    assert answer == [*own, run.task.context.tokenizer.eos_token_id]


def test_the_ranking_is_that_of_the_likelihoods(run: Run) -> None:
    """Of all items that are not seen; those of `score_candidates` are computed without a search."""
    task, predict = task_of(run), run.predictor
    encoded = task.encode(examples("generative", 9))
    every = np.broadcast_to(np.arange(12), (9, 12))
    exact = task.score_candidates(predict, encoded, every)
    found = task.all_scores(predict, encoded)(slice(0, 9))
    for e, own, scores in zip(encoded, exact, found, strict=True):
        allowed = np.setdiff1d(np.arange(12), e.target.seen)
        np.testing.assert_allclose(scores[allowed], own[allowed], atol=1e-4)
        assert (scores[e.target.seen] < scores[allowed].min()).all()


def test_candidates_and_the_history_limit_the_answers(run: Run) -> None:
    task = task_of(run)
    listed = {"candidates": ["item-4", "item-9", "item-2"], "history": ["item-9"]}
    first, second = run.predict([{"instruction": "a film", **listed}, {"instruction": "a film"}])
    assert {each.id for each in first.items} == {"item-4", "item-2"}
    assert len({each.id for each in second.items}) == 10
    assert task.ids.sizes == codes_of(ITEMS).sizes


def test_a_network_that_learned_about_codes_before(coded: dict[str, Path], tmp_path: Path) -> None:
    """As a language model, exported, with the codes beside it."""
    config = language_run(coded["codes llama"], tmp_path, steps=1, evaluation__every=0)
    train(config)
    export([config.run_dir, "--out", str(tmp_path / "aligned")])
    shutil.copytree(coded["codes llama"] / "semantic_ids", tmp_path / "aligned" / "semantic_ids")
    task = task_config("generative", tmp_path / "catalogue", beams=20)
    run = Run.open(untrained_run(tmp_path / "coded", task, tmp_path / "aligned"))
    (answer,) = run.predict([{"instruction": "a film", "history": ["item-3"]}])
    assert len({each.id for each in answer.items} - {"item-3"}) == 10


def test_a_tokenizer_without_the_codes_is_refused(
    coded: dict[str, Path], language_models: dict[str, Path], tmp_path: Path
) -> None:
    network = tmp_path / "network"
    shutil.copytree(language_models["llama"], network)
    shutil.copytree(coded["codes llama"] / "semantic_ids", network / "semantic_ids")
    task: Any = task_config("generative", tmp_path / "catalogue", beams=20)
    with pytest.raises(ValueError, match="does not have the tokens <a_0> to <c_.*prepare ids"):
        untrained_run(tmp_path / "run", task, network)
