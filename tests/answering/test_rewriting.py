"""Texts rewritten by networks: a masked language model against transformers, and stand-ins for what writes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import task_config
from tiny_runs import untrained_run

from instructrec_jax.answering import rewriting as module
from instructrec_jax.answering.rewriting import INSTRUCTION, BackTranslator, MaskFiller, Paraphraser, Source, translator
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks.answers import LabelAnswer, TextAnswer


def source(text: str, **how: Any) -> Source:
    return Source(text, ("7", text), **how)


# ---------------------------------------------------------------- a masked language model


@pytest.fixture(scope="module")
def masked(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    limits = dict(vocab_size=len(tokenizer), max_position_embeddings=64)
    config = transformers.BertConfig(**limits, **sizes, initializer_range=0.5)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_word_is_one_of_the_likeliest_ones_of_transformers(masked: Path, tokenizer: Any) -> None:
    fill = MaskFiller(masked, 1.0)
    text, fixed = "the old (film) about 12 Ann, not a book.", frozenset({0, 1, 3, 7})
    (found,) = fill([source(text, fixed=fixed)])
    words = found.split()
    assert [words[n] for n in (0, 1, 3, 4, 5, 6, 7)] == ["the", "old", "about", "12", "Ann,", "not", "a"]
    assert words[2][0] + words[2][-1] == "()" and words[8].endswith(".") and len(words) == 9
    inputs = tokenizer(text.replace("film", "[MASK]").replace("book", "[MASK]"), return_tensors="pt")
    network = transformers.BertForMaskedLM.from_pretrained(masked).eval()
    with torch.no_grad():
        logits = network(inputs["input_ids"]).logits[0]
    places = np.flatnonzero(inputs["input_ids"][0].numpy() == tokenizer.mask_token_id)
    for place, word in zip(places, (words[2][1:-1], words[8][:-1]), strict=True):
        likeliest = tokenizer.convert_ids_to_tokens(logits[place].topk(module.GUESSES).indices.tolist())
        allowed = [token for token in likeliest if token.isalpha() and len(token) > 1]
        assert word in (allowed or ["film", "book"])
    assert found != text


def test_fillings_are_drawn_anew_for_each_key_and_not_for_each_call(masked: Path) -> None:
    fill = MaskFiller(masked, 0.5)
    sources = [Source("the old film about the good book", (str(n),)) for n in range(12)]
    found = fill(sources)
    assert len(set(found)) > 3 and fill(sources[3:5]) == found[3:5]
    assert fill([source("12 Ann")]) == ["12 Ann"]


def test_what_cannot_fill_is_refused(checkpoint: Path, masked: Path) -> None:
    with pytest.raises(ValueError, match="--mask_fill 0: a rate is a share of words"):
        MaskFiller(masked, 0)
    with pytest.raises(ValueError, match="has no head of a masked language model"):
        MaskFiller(checkpoint, 0.1)


# ---------------------------------------------------------------- there and back


def translating(answer: Callable[[str], Any]) -> SimpleNamespace:
    """A run that answers texts."""
    asker = SimpleNamespace(
        example=lambda record, where: record["instruction"],
        answers=lambda texts, skip: ([answer(text) for text in texts], []),
    )
    return SimpleNamespace(asker=lambda many: asker, config=Config())


def test_there_and_back_by_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "translating_run", lambda name: translating(lambda t: TextAnswer(f"{name}({t})")))
    assert BackTranslator("there", "back")([source("a"), source("b")]) == ["back(there(a))", "back(there(b))"]


def test_a_folder_translates_whole_texts_or_none(language_models: dict[str, Path], checkpoint: Path) -> None:
    run = module.translating_run(str(language_models["bart"]))
    assert run.config.data.max_length == run.config.task.max_new_tokens == 128  # type: ignore[attr-defined]
    translate = translator(str(language_models["bart"]))
    said = translate(["a good film", "a good film " * 50])
    assert len(said) == 2 and said[1] == ""
    with pytest.raises(ValueError, match="needs a decoder"):
        translator(str(checkpoint))


def test_a_classifier_translates_nothing(checkpoint: Path, tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", task_config("classification", tmp_path), checkpoint, 32)
    with pytest.raises(ValueError, match="has the task classification, which writes no translations"):
        translator(str(run))


def test_what_was_not_translated_is_not_translated_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(name: str) -> Callable[[Sequence[str]], list[str]]:
        def translate(texts: Sequence[str]) -> list[str]:
            assert all(texts)
            return [text if text == "b" else "" for text in texts]

        return translate

    monkeypatch.setattr("instructrec_jax.answering.rewriting.translator", steps)
    back = BackTranslator("there", "back")
    assert back([source("a"), source("b")]) == ["", "b"] and back([source("a")]) == [""]


def test_answers_that_are_no_texts_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"a": TextAnswer(" "), "b": LabelAnswer("a", {}), "c": TextAnswer("x"), "d": None}
    monkeypatch.setattr(module, "translating_run", lambda _: translating(lambda text: answers[text]))
    assert translator("run")(["a", "b", "c", "d"]) == ["", "", "x", ""]


@pytest.fixture
def apertium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name, which writes in capitals there, and fails on the way back."""
    script = tmp_path / "apertium"
    script.write_text(
        '#!/bin/sh\nif [ "$1" = -l ]; then echo "  eng-spa"; echo "  spa-eng"; exit; fi\n'
        '[ "$1" = -u ] || exit 1\nif [ "$2" = eng-spa ]; then tr a-z A-Z; else echo broken >&2; exit 3; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return script


def test_apertium_gets_a_line_for_each_text(apertium: Path) -> None:
    assert translator("eng-spa")(["a film\nin two lines", "book"]) == ["A FILM IN TWO LINES", "BOOK"]
    with pytest.raises(ValueError, match="apertium spa-eng failed: broken."):
        translator("spa-eng")(["x"])
    with pytest.raises(ValueError, match="--back_translation eng-deu: Apertium has the pairs eng-spa, spa-eng."):
        translator("eng-deu")


def test_a_missing_apertium_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="eng-spa: Apertium is not installed. Install Debian's apertium and a pair"):
        translator("eng-spa")


# ---------------------------------------------------------------- a language model


def test_paraphrases_are_asked_for_and_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Model:
        tokenizer = staticmethod(lambda text: {"input_ids": text.split()})

        def __init__(self, path: Path) -> None:
            pass

        def generate(self, prompts: list[str], config: Any, progress: bool) -> list[Any]:
            calls.append((prompts, config))
            return [SimpleNamespace(text=text) for text in (' "Quoted." ', "plain")]

    monkeypatch.setattr(module, "LanguageModel", Model)
    write = Paraphraser(Path("model"), 7)
    assert write([source("one two"), source("three")]) == ["Quoted.", "plain"]
    (prompts, config), *_ = calls
    assert prompts == [INSTRUCTION + "one two", INSTRUCTION + "three"]
    assert (config.max_new_tokens, config.temperature) == (20, 0.8)
    write([source("one two"), source("three")])
    write([Source("one two", ("8",)), source("three")])
    assert calls[1][1].seed == config.seed != calls[2][1].seed
