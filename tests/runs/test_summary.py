"""What a run says before its first step, and the FLOP behind its MFU."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_runs import changed, tiny_run

from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.runs import summary as module
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import open_task
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.runs.summary import flops_and_peak, introduction, summarize
from instructrec_jax.runs.training_data import TrainingData
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.training.training_config import RobustTrainingConfig

CONFIG = changed(Config(task=ClassificationConfig()), run_dir="runs/my run", steps=1200, backbone__path="bert")


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([SourceConfig("a.jsonl")], "on a.jsonl "),
        ([SourceConfig("a.jsonl", name="mine"), SourceConfig("b.csv")], "on mine, b.csv "),
        ([SourceConfig(f"{n}.csv") for n in range(5)], "on 0.csv, 1.csv, 2.csv and 2 more "),
    ],
)
def test_the_introduction_names_what_was_trained_on_what(sources: list[SourceConfig], said: str) -> None:
    found = introduction(changed(CONFIG, data__train=sources), "BERT")
    assert found["title"] == "my run"
    assert said in found["subtitle"] and "bert (BERT)" in found["subtitle"] and "1,200 steps" in found["subtitle"]
    assert shlex.split(found["command"])[-1] == "runs/my run/config.yaml"


@pytest.fixture(scope="module")
def opened(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingSetup, TrainingData]:
    config = tiny_run("classification", checkpoint, tmp_path_factory.mktemp("run"), backbone__train_last=1)
    task = open_task(config, checkpoint)
    data = RunData(config).training(task, 8)
    return TrainingSetup.load(config, task, checkpoint, make_mesh(config.mesh)), data


def test_the_facts_of_a_run(opened: Any) -> None:
    setup, data = opened
    setup.task.context.counts["texts cut"] = 1234
    facts = summarize(setup, data)
    trained, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (setup.state.params, setup.state.frozen)
    )
    assert facts["parameters"] == f"{trained:,} trained, {frozen:,} frozen" and frozen > 0
    assert facts["devices"] == "8 × cpu, mesh data 8" and facts["steps"] == "6 × 8 examples"
    assert facts["examples"] == data.describe() and "1,234 texts cut" in facts["note"]
    assert facts["learning rate"] == setup.learning_rate_note and "(bert)" in facts["backbone"]


def test_flops_are_those_of_the_matrices_counted_by_hand(opened: Any) -> None:
    """Two layers of width 32 with an MLP of 64: 2 FLOP per weight and token forward. Backward through the last layer
    (trained) 4, and nothing below it."""
    setup, data = opened
    flops, peak = flops_and_peak(setup, data)
    layer = 4 * 32 * 32 + 2 * 32 * 64
    per_token = 2 * (2 * layer) + 4 * layer
    tokens, length = 10_000, int(sum(len(e.text.tokens) for e in data.encoded) / len(data.encoded))
    attention = (2 + 4 + 2) * 2 * 32 * length  # scores and values, of both layers forward, of the last one backward
    heads = tokens / length * 6 * (32 * 32 + 32 * 5)  # pooler and labels, once a text
    assert flops(tokens) == pytest.approx(tokens * (per_token + attention) + heads, rel=0.03)
    assert flops(2 * tokens) == pytest.approx(2 * flops(tokens), rel=1e-3)
    assert peak is None  # of this CPU


def test_a_step_that_runs_the_network_more_often_has_more_of_them(opened: Any) -> None:
    setup, data = opened
    for how, times in ((RobustTrainingConfig("r_drop"), 2), (RobustTrainingConfig("freelb", ascent_steps=3), 3)):
        own = replace(setup, config=replace(setup.config, robust_training=how))
        assert flops_and_peak(own, data)[0](1000) == times * flops_and_peak(setup, data)[0](1000)


def test_the_peak_is_that_of_all_devices(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peak_flops", lambda device: 1e12)
    assert flops_and_peak(*opened)[1] == 8e12


def test_a_stream_has_no_lengths(opened: Any) -> None:
    setup, data = opened
    unknown = TrainingData("f", data.batches, "8 examples")
    assert flops_and_peak(setup, unknown)[0](100) >= 0 and "stream" in summarize(setup, unknown)["examples"]
