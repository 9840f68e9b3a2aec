"""Maximum length, batch size and steps, for texts of known numbers of tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer

from instructrec_jax.data.example import Example
from instructrec_jax.preparation.inspection.sizing import (
    DEFAULT_BACKBONE,
    LORA_RANK,
    RATES,
    Network,
    length_settings,
    open_network,
    rate_settings,
    step_settings,
)
from instructrec_jax.preparation.inspection.table import Guess, Setting

NETWORK = Network("tiny", "encoder", 512, byte_tokenizer(), exact=True)


def task(kind: str) -> Guess:
    return Guess({"type": Setting(kind)}, {}, ("text",), "label")


def lengths(*sizes: int, kind: str = "classification", network: Network = NETWORK, **fields: Any) -> dict[str, Any]:
    """The settings for texts of so many tokens ("é" is two bytes, which no merge joins)."""
    examples = [Example(instruction="é" * (size // 2), output="é", **fields) for size in sizes]
    found = length_settings(examples, task(kind), network, complete=True)
    return {name: setting.value for name, setting in found.items()}


def test_tokens_are_counted_by_the_tokenizer() -> None:
    assert NETWORK.count(["ééé", ""]) == [6, 0] and NETWORK.count([]) == []


@pytest.mark.parametrize(("size", "length"), [(2, 32), (26, 32), (28, 64), (100, 128), (400, 448), (460, 512)])
def test_the_length_has_room_for_the_longest_text_and_is_a_multiple_of_32(size: int, length: int) -> None:
    """A tenth more than the longest text with two special tokens."""
    assert lengths(size) == {"max_length": length}


def test_an_estimated_length_has_more_room() -> None:
    cut = {"truncate": "right"}  # the network's own tokens may be more
    assert lengths(100, network=replace(NETWORK, exact=False)) == {"max_length": 128} | cut
    assert lengths(110, network=replace(NETWORK, exact=False)) == {"max_length": 160} | cut
    found = length_settings([Example(instruction="a")], task("classification"), NETWORK, complete=False)
    assert found["truncate"].value == "right"  # other rows may be longer
    assert lengths(110) == {"max_length": 128}


def test_the_networks_limit_is_kept_and_the_cut_is_named() -> None:
    assert lengths(600) == {"max_length": 512, "truncate": "right"}
    assert lengths(600, network=replace(NETWORK, limit=128)) == {"max_length": 128, "truncate": "right"}
    assert lengths(600, kind="token_classification")["truncate"] == "drop"  # a cut text has no tags for its end
    assert lengths(600, kind="span") == {"max_length": 512}  # read in windows


def test_one_very_long_text_does_not_decide() -> None:
    assert lengths(*[20] * 400, 400) == {"max_length": 32, "truncate": "right"}
    assert lengths(*[20] * 400, 60) == {"max_length": 96}


def test_spans_have_windows_of_some_length() -> None:
    assert lengths(20, kind="span") == {"max_length": 128}


def test_what_a_task_reads_counts() -> None:
    assert lengths(20, candidates=("é" * 100,)) == {"max_length": 224}
    examples = [Example(instruction="a", output="é" * 100)]
    assert length_settings(examples, task("similarity"), NETWORK, complete=True)["max_length"].value == 224
    assert length_settings(examples, task("classification"), NETWORK, complete=True)["max_length"].value == 32
    written = length_settings(examples, task("language_model"), replace(NETWORK, kind="decoder"), complete=True)
    assert int(str(written["max_length"].value)) > 224  # the prompt and its answer


@pytest.mark.parametrize(
    ("rows", "kind", "batch", "steps"),
    [
        (3, "encoder", 8, 20),
        (63, "encoder", 8, 79),
        (64, "encoder", 16, 40),
        (320, "encoder", 32, 100),
        (999, "encoder", 32, 313),
        (1000, "encoder", 32, 94),
        (1000, "decoder", 8, 375),
        (10**6, "encoder", 32, 20_000),
    ],
)
def test_steps_are_epochs_within_bounds(rows: int, kind: str, batch: int, steps: int) -> None:
    found = step_settings(rows, task("classification"), replace(NETWORK, kind=kind))
    assert (found["batch_size"].value, found["steps"].value) == (batch, steps)
    assert 0 < -(-steps // int(str(found["every"].value))) <= 10
    assert all(setting.why for setting in found.values())


def test_rates() -> None:
    assert {n: s.value for n, s in rate_settings(NETWORK).items()} == {"learning_rate": RATES["pretrained"]}
    decoder = rate_settings(replace(NETWORK, kind="decoder"))
    assert {n: s.value for n, s in decoder.items()} == {"rank": LORA_RANK, "learning_rate": RATES["lora"]}


def test_networks(checkpoint: Path) -> None:
    default = open_network(None)
    assert (default.name, default.kind, default.limit, default.exact) == (DEFAULT_BACKBONE, "encoder", 512, False)
    own = open_network(str(checkpoint))
    assert (own.kind, own.limit, own.exact) == ("encoder", 64, True) and own.count(["a film"]) == [5]
    with pytest.raises(ValueError, match="nowhere"):
        open_network("./nowhere")
