"""Settings of the task sequence that cannot be, and what `tune` changes."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.runs.config import Config, parse
from instructrec_jax.tasks import SequenceConfig
from instructrec_jax.tuning.space import default_space, own_values, read_space, with_settings

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"history_limit": 63, "objective": "masked"}, r"data.max_length.*64.*history_limit \+ 2 = 65"),
        ({"negatives": 0, "loss": "bce"}, "task.negatives.*0"),
        ({"mlp_factor": 0}, "task.mlp_factor.*0"),
        ({"dropout": 1.0}, "task.dropout.*1.0"),
        ({"dropout": float("nan")}, "task.dropout.*nan"),
        ({"attention_dropout": -0.1}, "task.attention_dropout.*-0.1"),
        ({"label_smoothing": 1.0}, "task.label_smoothing.*1.0"),
        ({"loss": "gbce", "gbce_t": 1.5}, "task.gbce_t.*1.5"),
        ({"objective": "masked", "mask_share": 0.0}, "task.mask_share.*0.0"),
        ({"mask_share": 0.4}, "task.mask_share has no effect with task.objective next"),
        ({"gbce_t": 0.5, "loss": "bce"}, "task.gbce_t has no effect with task.loss bce"),
        ({"softmax": "sampled", "loss": "bce"}, "task.softmax has no effect with task.loss bce"),
        ({"network": "gru", "activation": "relu"}, "task.activation has no effect with task.network gru"),
        ({"network": "hstu", "norm": "post"}, "task.norm has no effect with task.network hstu"),
        ({"ids": False, "item_bias": False}, "task.item_bias has no effect with task.ids false"),
        ({"network": "gru", "positions": "relative"}, "task.positions.*task.network gru"),
        ({"network": "gru", "objective": "masked"}, "task.objective masked"),
        ({"label_smoothing": 0.1, "softmax": "sampled"}, "task.label_smoothing.*task.softmax full"),
        ({"label_smoothing": 0.1, "cold_items": "left_out"}, "task.label_smoothing.*task.cold_items"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SequenceConfig(**settings).check(64)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, set()),
        ({"loss": "gbce", "attention_dropout": 0.1}, {"task.gbce_t", "task.attention_dropout"}),
        ({"loss": "gbce", "negatives": 64}, {"task.gbce_t", "task.negatives"}),
        ({"objective": "masked"}, {"task.mask_share"}),
    ],
)
def test_a_search_changes_what_the_network_and_its_loss_have(settings: dict[str, Any], more: set[str]) -> None:
    usual = {"optimizer.learning_rate", "task.dropout", "task.hidden_size", "task.num_layers"}
    assert set(SequenceConfig(**settings).search_space) == usual | more


def test_a_search_starts_with_the_settings_as_they_are() -> None:
    """Those of each published network, and of the head for the space of configs/."""
    base = parse(Config, ["--config_path", str(ROOT / "configs/movielens_sequence.yaml")])
    for task in published().values():
        config = replace(base, task=task)
        found = own_values(config, default_space(config))
        assert found is not None and with_settings(config, found) == config
    space = read_space(ROOT / "configs/spaces/sequence.yaml")
    found = own_values(base, space)
    assert found is not None and with_settings(base, found) == base
    for name, entry in space.items():
        for value in getattr(entry, "values", None) or (entry.low, entry.high):  # type: ignore[union-attr]
            with_settings(base, {name: value}).task.check(128)  # type: ignore[attr-defined]


def test_the_number_of_negatives_is_the_losss_own() -> None:
    found = [SequenceConfig(loss=loss).negative_count for loss in ("softmax", "bce", "gbce")]  # type: ignore[arg-type]
    assert found == [1024, 1, 256]
    assert SequenceConfig(loss="bce", negatives=7).negative_count == 7


def published() -> dict[str, SequenceConfig]:
    """The networks of the table in the documentation, by name."""
    page = (ROOT / "docs/personal_recommendation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| `(--task.text false.*)` \|$", page, re.M)
    base = str(ROOT / "configs/movielens_sequence.yaml")
    found = {name: parse(Config, ["--config_path", base, *shlex.split(line)]).task for name, line in rows}
    assert all(isinstance(task, SequenceConfig) for task in found.values())
    return found  # type: ignore[return-value]


def test_the_published_networks_are_what_their_papers_say() -> None:
    found = published()
    for task in found.values():
        task.check(128)
        assert not task.text and task.ids and not task.factors
        assert task.loss != "softmax" or task.seen_items == "negatives"
    for name in ("SASRec", "SASRec-CE", "gSASRec", "SASRec, post-norm"):
        task = found[name]
        assert (task.network, task.activation, task.mlp_factor, task.item_bias) == ("transformer", "relu", 1, False)
        assert task.attention_dropout > 0 and task.norm == ("post" if "post" in name else "pre")
    losses = {name: (task.loss, task.softmax, task.negative_count) for name, task in found.items()}
    assert losses["SASRec"] == losses["SASRec, post-norm"] == ("bce", "full", 1)
    assert losses["gSASRec"] == ("gbce", "full", 256) and found["gSASRec"].gbce_t == 0.75
    assert {losses[name][:2] for name in ("SASRec-CE", "GRU4Rec", "BERT4Rec", "HSTU")} == {("softmax", "full")}
    assert (found["BERT4Rec"].objective, found["BERT4Rec"].norm) == ("masked", "post")
    assert (found["GRU4Rec"].network, found["GRU4Rec"].positions) == ("gru", "none")
    assert (found["HSTU"].network, found["HSTU"].positions) == ("hstu", "relative")
