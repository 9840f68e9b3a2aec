"""Settings of generation, and what generation_config.json and config.json say about special tokens."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instructrec_jax.inference.generation_config import (
    SCALARS,
    GenerationConfig,
    TokenRules,
    recommendations,
    speech_prefix,
    token_rules,
)

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
    expected = TokenRules(eos=(2,), pad=1, start=0, forced_first=(5,), forced_last=(2,), suppressed_first=(3,))
    assert token_rules(*where, TOKENIZER, "encoder_decoder") == expected


def test_old_checkpoints_say_it_in_config_json(tmp_path: Path) -> None:
    where = folder(tmp_path, {"eos_token_id": 2, "decoder_start_token_id": 8, "forced_bos_token_id": 5})
    rules = token_rules(*where, TOKENIZER, "encoder_decoder")
    assert (rules.start, rules.forced_first) == (8, (5,))


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


@pytest.mark.parametrize("token", ["7", 1.5, [[7]], {"id": 7}])
def test_a_token_that_is_no_number_is_named(tmp_path: Path, token: Any) -> None:
    with pytest.raises(ValueError, match=tmp_path.name):
        token_rules(*folder(tmp_path, {}, {"eos_token_id": token}), TOKENIZER, "decoder")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        *[({"temperature": value}, "temperature") for value in (-0.1, float("inf"), float("nan"))],
        *[({"temperature": 1.0, "top_k": value}, "top_k") for value in (0, -1)],
        *[({"temperature": 1.0, "top_p": value}, "top_p") for value in (0.0, 1.1, float("nan"))],
        *[({"temperature": 1.0, "min_p": value}, "min_p") for value in (-0.1, 1.1)],
        *[({"repetition_penalty": value}, "repetition_penalty") for value in (0.0, float("inf"))],
        ({"beams": 0}, "beams"),
        ({"beams": 2, "length_penalty": float("nan")}, "length_penalty"),
        *[({"seed": value}, "seed") for value in (-1, 2**32)],
        ({"batch_size": 0}, "batch_size"),
        ({"stop": ("a", "")}, "stop"),
        # settings that would have no effect
        *[({name: value}, "temperature") for name, value in (("top_k", 5), ("top_p", 0.9), ("min_p", 0.1))],
        ({"beams": 2, "temperature": 1.0}, "beams"),
        ({"beams": 2, "stop": ("a",)}, "stop"),
        ({"length_penalty": 2.0}, "length_penalty"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        GenerationConfig(**settings)


def test_settings_that_differ_in_numbers_alone_share_a_program() -> None:
    """`structure` keys the compiled programs, `scalars` are their arguments."""
    sampled = GenerationConfig(temperature=0.7, top_p=0.9, seed=1, max_new_tokens=5, stop=("a",), batch_size=2)
    other = GenerationConfig(temperature=1.3, top_p=0.5, seed=2, max_new_tokens=9)
    assert sampled.structure() == other.structure() and hash(sampled.structure()) == hash(other.structure())
    apart = [
        GenerationConfig(),
        GenerationConfig(temperature=0.7),
        GenerationConfig(temperature=0.7, top_p=0.9, min_p=0.1),
        GenerationConfig(temperature=0.7, top_k=5),
        GenerationConfig(temperature=0.7, top_k=6),
        GenerationConfig(repetition_penalty=1.1),
        GenerationConfig(beams=2),
        GenerationConfig(beams=3),
        sampled,
    ]
    assert len({config.structure() for config in apart}) == len(apart)
    assert sampled.scalars() == {name: getattr(sampled, name) for name in SCALARS}


LANGUAGES = {"lang_to_id": {"<|en|>": 5}, "task_to_id": {"transcribe": 6, "translate": 7}, "no_timestamps_token_id": 8}


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ({}, ()),
        ({"no_timestamps_token_id": 8}, (8,)),
        ({"forced_decoder_ids": [[1, 8]], "no_timestamps_token_id": 8}, (8,)),
        ({"language": "english", **LANGUAGES}, (5, 6, 8)),
        ({"language": "<|en|>", "task": "translate", **LANGUAGES}, (5, 7, 8)),
        ({"forced_decoder_ids": [[1, 5], [2, 7]], **LANGUAGES}, (5, 7, 8)),
    ],
)
def test_answers_to_sounds_start_as_transformers_starts_them(
    settings: dict[str, Any], prefix: tuple[int, ...], tmp_path: Path
) -> None:
    assert speech_prefix(*folder(tmp_path, {}, settings)) == prefix


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"return_timestamps": True}, "return_timestamps is not implemented"),
        (LANGUAGES, "detecting one is not implemented: set `language`"),
        ({"forced_decoder_ids": [[1, None], [2, 6]], **LANGUAGES}, "detecting one is not implemented"),
        ({"forced_decoder_ids": [[2, 6]]}, r"must be a list of \[1, token\]"),
        ({"forced_decoder_ids": [[1, None]]}, "not all integers"),
        ({"language": "klingon", **LANGUAGES}, "lang_to_id has no '<|klingon|>'"),
        ({"language": "en", "task": "sing", **LANGUAGES}, "task_to_id has no 'sing'"),
    ],
)
def test_starts_of_answers_that_are_not_implemented_are_named(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said.replace("|", r"\|")):
        speech_prefix(*folder(tmp_path, {}, settings))
