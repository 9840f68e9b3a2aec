"""The metric that chooses the best checkpoint: its name, and which values may be compared."""

import pytest
from tiny_runs import changed

from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.runs.checkpoint_metric import (
    RANKER_PATIENCE,
    chosen_metric,
    evaluation_failed,
    measure_of,
    patience_of,
)
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks.ranking.ranking_config import RetrievalConfig
from instructrec_jax.tasks.ranking.sequence_settings import SequenceConfig
from instructrec_jax.tasks.text.text_config import ClassificationConfig


def test_a_metric_that_the_task_does_not_compute_is_named_with_those_it_does() -> None:
    assert chosen_metric({"loss": 2.0, "accuracy": 0.5}, "accuracy") == 0.5
    with pytest.raises(ValueError, match="evaluation.metric.*'acuracy'.*loss, accuracy"):
        chosen_metric({"loss": 2.0, "accuracy": 0.5}, "acuracy")


def test_values_of_other_metrics_or_cases_are_not_compared() -> None:
    config = Config()
    measures = {
        measure_of(config, "loss"),
        measure_of(config, "accuracy"),
        measure_of(changed(config, evaluation__max_examples=5), "loss"),
        measure_of(changed(config, data__validation=[SourceConfig(path="other.jsonl")]), "loss"),
    }
    assert len(measures) == 4
    assert measure_of(changed(config, steps=7, evaluation__patience=1), "loss") == measure_of(config, "loss")


def test_rankers_of_a_catalogue_stop_early_by_default() -> None:
    assert patience_of(changed(Config(), task=ClassificationConfig())) is None
    for task in (SequenceConfig(), RetrievalConfig()):
        ranker = changed(Config(), task=task)
        assert patience_of(ranker) == RANKER_PATIENCE
        assert patience_of(changed(ranker, evaluation__patience=2)) == 2


def test_a_failed_evaluation_keeps_the_kind_of_its_error() -> None:
    with pytest.raises(ValueError, match=r"(?s)full.*step 7.*--evaluation.every 0"):
        evaluation_failed(7, OSError("the disk is full"))
    with pytest.raises(ZeroDivisionError) as error:
        evaluation_failed(7, ZeroDivisionError())
    assert "--evaluation.every 0" in error.value.__notes__[0]
