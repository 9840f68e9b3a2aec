"""What generation_config.json and config.json say about special tokens."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instructrec_jax.inference.generation_config import TokenRules, recommendations, token_rules

TOKENIZER = SimpleNamespace(eos_token_id=2, pad_token_id=None)


def folder(path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> tuple[Path, Any]:
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path, SimpleNamespace(**config)


def test_every_end_of_an_answer_counts(tmp_path: Path) -> None:
    where = folder(tmp_path, {"eos_token_id": 4}, {"eos_token_id": [7, 4], "suppress_tokens": [9]})
    rules = token_rules(*where, TOKENIZER, "decoder", ends=(11, 2))
    assert rules == TokenRules(eos=(7, 4, 2, 11), pad=7, suppressed=(9,))


def test_encoder_decoders(tmp_path: Path) -> None:
    generation = {"forced_bos_token_id": 5, "forced_eos_token_id": [2], "begin_suppress_tokens": [3], "pad_token_id": 1}
    where = folder(tmp_path, {"eos_token_id": 2, "decoder_start_token_id": 0}, generation)
    expected = TokenRules(eos=(2,), pad=1, start=0, forced_first=5, forced_last=(2,), suppressed_first=(3,))
    assert token_rules(*where, TOKENIZER, "encoder_decoder") == expected


def test_old_checkpoints_say_it_in_config_json(tmp_path: Path) -> None:
    where = folder(tmp_path, {"eos_token_id": 2, "decoder_start_token_id": 8, "forced_bos_token_id": 5})
    rules = token_rules(*where, TOKENIZER, "encoder_decoder")
    assert (rules.start, rules.forced_first) == (8, 5)


@pytest.mark.parametrize(
    ("kind", "generation", "message"),
    [
        ("decoder", {"bad_words_ids": [[3]]}, "bad_words_ids"),
        ("decoder", {"forced_bos_token_id": 3}, "forced_bos_token_id"),
        ("encoder_decoder", {}, "decoder_start_token_id"),
    ],
)
def test_what_is_not_implemented_is_named(tmp_path: Path, kind: str, generation: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_rules(*folder(tmp_path, {}, generation), TOKENIZER, kind)


def test_recommendations(tmp_path: Path) -> None:
    sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "length_penalty": 2.0}
    assert recommendations(folder(tmp_path, {}, sampled)[0]) == {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    searched = {"temperature": 0.6, "num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3}
    expected = {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3}
    assert recommendations(folder(tmp_path, {}, searched)[0]) == expected
    assert recommendations(folder(tmp_path, {}, {"eos_token_id": 2})[0]) == {}
