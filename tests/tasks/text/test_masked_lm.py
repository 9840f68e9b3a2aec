"""Masked language modelling: what is hidden, and the loss on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import Setup, by_text, examples

from instructrec_jax.data.batch import BatchTexts, Text, end_to_end
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.loader import pack
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.tasks import MaskedLMConfig
from instructrec_jax.tasks.base import Encoded, LossInputs, TaskContext
from instructrec_jax.tasks.targets import TokenLabels

EXAMPLE = Example(instruction="a film")


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def build(context: TaskContext, rate: float = 0.15) -> Any:
    return MaskedLMConfig(mask_rate=rate).build(context)


def random_texts(tokenizer: Any, lengths: Any, seed: int = 0) -> list[Encoded]:
    """[CLS] ordinary tokens [SEP], of given lengths in all."""
    rng, special = np.random.default_rng(seed), tokenizer.all_special_ids
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
    made = []
    for length in lengths:
        body = rng.choice(ordinary, max(1, length - 2))
        tokens = np.array([tokenizer.cls_token_id, *body, tokenizer.sep_token_id], np.int32)
        made.append(Encoded(Text(tokens), None, EXAMPLE))
    return made


# ------------------------------------------------------------------ what is hidden


def test_no_token_lies_outside_of_the_table(context: TaskContext, tokenizer: Any) -> None:
    size = tokenizer.mask_token_id + 5
    task = build(replace(context, vocab_size=size), 0.9)
    encoded = [Encoded(Text(np.full(40, size - 1, np.int32)), None, EXAMPLE)] * 50
    assert max(text.tokens.max() for text in task.gather(encoded, np.random.default_rng(0)).texts) < size
    beyond = Example(instruction=tokenizer.convert_ids_to_tokens(size + 1), id="x7")
    if tokenizer(beyond.instruction)["input_ids"][1] == size + 1:
        with pytest.raises(ValueError, match="'x7'"):
            task.encode([beyond])
    with pytest.raises(ValueError, match="vocab_size"):
        build(replace(context, vocab_size=tokenizer.mask_token_id))


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_mask_rate_and_the_shares_of_ten(rate: float, context: TaskContext, tokenizer: Any) -> None:
    encoded = random_texts(tokenizer, [3, 5, 20, 40, 200] * 60)
    parts = build(context, rate).gather(encoded, np.random.default_rng(1))
    kept = replaced = masked = 0
    for e, text, supervised, labels in zip(
        encoded, parts.texts, by_text(parts, "supervised"), by_text(parts, "labels"), strict=True
    ):
        before, after, hidden = e.text.tokens, text.tokens, supervised > 0
        assert supervised.sum() == min(len(before) - 2, max(1, int(rate * len(before))))
        assert not hidden[0] and not hidden[-1]  # special tokens
        np.testing.assert_array_equal(after[~hidden], before[~hidden])
        np.testing.assert_array_equal(labels, before)
        masked += (after[hidden] == tokenizer.mask_token_id).sum()
        kept += (after[hidden] == before[hidden]).sum()
        replaced += ((after != before) & (after != tokenizer.mask_token_id))[hidden].sum()
    total = masked + kept + replaced
    assert total > 2000
    # Within five standard errors; of all random tokens one is the mask, and one the token itself.
    one = 0.1 / len(tokenizer)
    for share, count in ((0.8 + one, masked), (0.1 + one, kept), (0.1 - 2 * one, replaced)):
        assert abs(count / total - share) < 5 * np.sqrt(share * (1 - share) / total)
    assert all(e.text.tokens[0] == tokenizer.cls_token_id for e in encoded)  # the examples themselves stay


def test_every_ordinary_token_may_be_hidden_and_each_batch_hides_others(context: TaskContext, tokenizer: Any) -> None:
    task, encoded = build(context), random_texts(tokenizer, [12])
    hidden = [
        tuple(np.flatnonzero(by_text(task.gather(encoded, np.random.default_rng(n)), "supervised")[0]))
        for n in range(200)
    ]
    assert {place for places in hidden for place in places} == set(range(1, 11))
    again = by_text(task.gather(encoded, np.random.default_rng(3)), "supervised")[0]
    assert tuple(np.flatnonzero(again)) == hidden[3]


def test_special_tokens_inside_a_text_are_never_hidden(context: TaskContext, tokenizer: Any) -> None:
    task = build(context, 0.9)
    (e,) = task.encode([Example(instruction="a [SEP] b [UNK] [MASK]")])
    special = np.isin(e.text.tokens, tokenizer.all_special_ids)
    assert special.sum() == 5
    supervised = by_text(task.gather([e], np.random.default_rng(0)), "supervised")[0]
    np.testing.assert_array_equal(supervised > 0, ~special)


def test_answers_are_part_of_the_text(context: TaskContext) -> None:
    task = build(context)
    whole, alone = task.encode([Example(instruction="a film", output="war"), Example(instruction="a film war")])
    np.testing.assert_array_equal(whole.text.tokens, alone.text.tokens)
    turns = (Message("user", "a film"), Message("assistant", "war"))
    talk, written = task.encode([Example(instruction="", messages=turns), Example(instruction="user: a film war")])
    np.testing.assert_array_equal(talk.text.tokens, written.text.tokens)


def test_errors(context: TaskContext, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="example 'x7'"):
        build(context).encode([Example(instruction="[UNK]", id="x7")])
    for rate in (0.0, 1.0, 15.0):
        with pytest.raises(ValueError, match="task.mask_rate"):
            build(context, rate)

    class Maskless:
        mask_token_id = None

    with pytest.raises(ValueError, match="mask token"):
        build(TaskContext(Maskless(), 64))


# ------------------------------------------------------------------ loss


def test_loss_and_scores_equal_numpy(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("masked_lm", checkpoint, tmp_path)
    task, graphdef = setup.task, setup.model.graphdef
    seed = task.context.seed  # hidden as `score` hides them, each case by its number
    each = [task.gather([e], np.random.default_rng((seed, number))) for number, e in enumerate(setup.encoded)]
    labels, supervised = (end_to_end([getattr(one.own, name) for one in each]) for name in ("labels", "supervised"))
    parts = BatchTexts([one.texts[0] for one in each], TokenLabels(labels, supervised))
    batch = pack(parts, setup.buckets, 1).batch

    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        model = nnx.merge(graphdef, params)
        logits = model.head(model.backbone, model.hidden(batch))
        return task.loss(model, batch, LossInputs()), logits

    (total, weight), logits = run(setup.model.params, batch)
    z, hidden = np.asarray(logits, np.float64), batch.own.supervised > 0
    highest = z.max(-1, keepdims=True)
    log_probabilities = z - highest - np.log(np.exp(z - highest).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probabilities, batch.own.labels[..., None], -1)[..., 0][hidden]
    assert float(weight) == hidden.sum()
    assert float(total) == pytest.approx(losses.sum(), rel=1e-5)

    predict = predictor(task, graphdef, setup.mesh, setup.buckets)(setup.model.params)
    scores = task.score(predict, setup.encoded)
    assert scores.metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert scores.metrics["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-4)
    assert scores.metrics["accuracy"] == pytest.approx((z.argmax(-1) == batch.own.labels)[hidden].mean())
    assert len(scores.cases["loss"]) == len(setup.encoded) and task.metric in scores.metrics
    assert scores.metrics == task.score(predict, setup.encoded).metrics  # the same tokens each time
    for record, case, e in zip(scores.predictions, scores.cases["loss"], setup.encoded, strict=True):
        assert (record["id"], record["mean_log_probability"]) == (e.example.id, pytest.approx(-case))
    to_words = task.context.tokenizer.convert_ids_to_tokens
    for record, labels, supervised in zip(
        scores.predictions, by_text(parts, "labels"), by_text(parts, "supervised"), strict=True
    ):
        assert record["reference"] == to_words(labels[supervised > 0])
    assert any("[MASK]" in record["input"] for record in scores.predictions)
    assert not task.greater_is_better


def test_gather_is_a_function_of_its_generator(context: TaskContext) -> None:
    task = build(context)
    encoded = task.encode(examples("masked_lm"))
    first, second = (task.gather(encoded, np.random.default_rng(5)) for _ in range(2))
    assert isinstance(first, BatchTexts)
    for a, b in zip(first.texts, second.texts, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
