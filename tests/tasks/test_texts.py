"""Pairs of texts: as the tokenizer itself makes them, with types, and cut where they are too long."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from instructrec_jax.data.example import Example, Message
from instructrec_jax.tasks import ClassificationConfig, MultilabelConfig, RegressionConfig
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.texts import knows_pairs, tokenize_examples

PAIR = Example(instruction="a film about war", input="good book", output="war")


def with_pairs(tokenizer: Any, *, types: bool = True) -> PreTrainedTokenizerFast:
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ids = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=names, **special)


TASKS: list[tuple[Any, Any]] = [
    (ClassificationConfig, "war"),
    (MultilabelConfig, ("war",)),
    (RegressionConfig, 1.0),
]


def config(kind: Any, **settings: Any) -> Any:
    return kind(**settings) if kind is RegressionConfig else kind(labels=["love", "war"], **settings)


@pytest.mark.parametrize(("kind", "output"), TASKS)
@pytest.mark.parametrize("types", [True, False])
def test_every_task_with_one_head_a_text_reads_the_tokenizers_own_pair(
    kind: Any, output: Any, types: bool, tokenizer: Any
) -> None:
    pairs = with_pairs(tokenizer, types=types)
    (e,) = config(kind).build(TaskContext(pairs, 64)).encode([replace(PAIR, output=output)])
    expected = pairs("a film about war", "good book")
    assert e.text.tokens.tolist() == expected["input_ids"]
    assert (None if e.text.types is None else e.text.types.tolist()) == expected.get("token_type_ids")
    if types:
        assert set(e.text.types.tolist()) == {0, 1}


@pytest.mark.parametrize(("kind", "output"), TASKS)
def test_joined_is_one_text_as_is_a_tokenizer_without_pairs_and_another_network(
    kind: Any, output: Any, tokenizer: Any
) -> None:
    pairs, example = with_pairs(tokenizer), replace(PAIR, output=output)
    assert knows_pairs(pairs) and not knows_pairs(tokenizer)
    made = [
        config(kind, sentence_pairs="joined").build(TaskContext(pairs, 64)),
        config(kind).build(TaskContext(tokenizer, 64)),
        config(kind).build(TaskContext(pairs, 64, kind="decoder")),
    ]
    expected = pairs("a film about war\ngood book")["input_ids"]
    for task in made:
        assert task.encode([example])[0].text.tokens.tolist() == expected


def test_examples_without_two_texts_stay_one(tokenizer: Any) -> None:
    pairs = with_pairs(tokenizer)
    some = [
        replace(PAIR, input=None),
        PAIR,
        replace(PAIR, instruction=""),
        replace(PAIR, messages=(Message("user", "new"),)),
    ]
    found = tokenize_examples(some, list("abcd"), TaskContext(pairs, 64), pairs=True)
    lengths = [(text.tokens == pairs.sep_token_id).sum() for text in found if text is not None]
    assert lengths == [1, 2, 1, 1]


@pytest.mark.parametrize(("truncate", "kept"), [("right", ("abcd", "ijkl")), ("left", ("efgh", "mnop"))])
def test_a_pair_that_is_too_long_loses_tokens_of_the_longer_text_first(
    truncate: Any, kept: tuple[str, str], tokenizer: Any
) -> None:
    pairs = with_pairs(tokenizer)
    first, second = "e " * 8, "l " * 8
    context = TaskContext(pairs, 11, truncate)
    (text,) = tokenize_examples([Example(instruction=first, input=second)], ["x"], context, pairs=True)
    assert text is not None and len(text.tokens) == 11 and text.types is not None
    assert [int((text.types == number).sum()) for number in (0, 1)] == [6, 5]
    (text,) = tokenize_examples([Example(instruction="e e", input=second)], ["x"], context, pairs=True)
    assert text is not None and (text.types == 0).sum() == 4  # the shorter one is whole
    letters = Example(instruction="a b c d e f g h", input="i j k l m n o p")
    (text,) = tokenize_examples([letters], ["x"], context, pairs=True)
    assert text is not None
    assert tuple(part.replace(" ", "") for part in pairs.decode(text.tokens).split("[SEP]")[:2]) == (
        f"[CLS]{kept[0]}",
        kept[1],
    )
    assert context.counts == {"texts cut": 3}


def test_errors_name_the_text(tokenizer: Any) -> None:
    pairs = with_pairs(tokenizer)
    with pytest.raises(ValueError, match="example 'x'.*data.max_length"):
        tokenize_examples([PAIR], ["example 'x'"], TaskContext(pairs, 5), pairs=True)
    with pytest.raises(ValueError, match="data.max_length"):
        tokenize_examples([PAIR], ["example 'x'"], TaskContext(pairs, 4, "right"), pairs=True)
    assert tokenize_examples([PAIR], ["x"], TaskContext(pairs, 5, "drop"), pairs=True) == [None]


def test_lower_case_reaches_both_texts(tokenizer: Any) -> None:
    pairs = with_pairs(tokenizer)
    upper = Example(instruction="A FILM", input="OLD")
    (text,) = tokenize_examples([upper], ["x"], TaskContext(pairs, 64, lower_case=True), pairs=True)
    assert text is not None
    np.testing.assert_array_equal(text.tokens, pairs("a film", "old")["input_ids"])
