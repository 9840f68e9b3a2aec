"""One label a word: targets lie on the first token of each word, scores are those of scikit-learn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer
from flax import nnx
from helpers import Setup, examples
from sklearn import metrics as sk

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.tasks import TokenClassificationConfig
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.prediction import Predict

LABELS = ["other", "subject"]


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


@pytest.fixture
def task(context: TaskContext) -> Any:
    return TokenClassificationConfig(labels=LABELS).build(context)


def random_predict(texts: Sequence[Text], *_: object) -> list[np.ndarray]:
    return [np.random.default_rng(t.tokens.tolist()).normal(size=(len(t.tokens), 2)) for t in texts]


def test_labels_lie_on_the_first_token_of_each_word(task: Any, tokenizer: Any) -> None:
    words, tags = ["bright", "unbelievably", "war"], ("other", "other", "subject")
    (e,) = task.encode([Example(instruction=" ".join(words), output=tags)])
    pieces = [tokenizer(word)["input_ids"][1:-1] for word in words]
    assert len(pieces[1]) > 2  # a word of several tokens
    assert e.text.tokens.tolist() == [tokenizer.cls_token_id, *sum(pieces, []), tokenizer.sep_token_id]
    starts = 1 + np.cumsum([0, *map(len, pieces)])[:-1]
    assert np.flatnonzero(e.target.first).tolist() == starts.tolist()
    assert e.target.labels[starts].tolist() == [0, 0, 1]


@pytest.mark.parametrize("trim", [True, False])
def test_words_are_read_with_the_space_before_them(trim: bool) -> None:
    """Tokens of RoBERTa and GPT-2 begin with a space; word by word, the tokenizer would make others."""
    tokenizer = byte_tokenizer(bos=True, eos=True, trim_offsets=trim)
    task = TokenClassificationConfig(labels=LABELS).build(TaskContext(tokenizer, 64))
    (e,) = task.encode([Example(instruction="yes the an  🎬 yes", output=("subject", *["other"] * 3, "subject"))])
    assert e.text.tokens.tolist() == tokenizer("yes the an 🎬 yes")["input_ids"]
    found = tokenizer.convert_ids_to_tokens(e.text.tokens[e.target.first > 0])
    assert found[:2] == ["yes", "Ġthe"] and len(found) == 5 and found[-1] == "Ġyes"
    assert e.target.labels[e.target.first > 0].tolist() == [1, 0, 0, 0, 1]


def test_words_are_those_of_the_input_where_there_is_one(task: Any) -> None:
    (e,) = task.encode([Example(instruction="Find the subjects.", input="a film", output=("other", "other"))])
    assert e.target.first.sum() == 2


@pytest.mark.parametrize(
    ("text", "output", "words"),
    [
        ("a film", ("other",), "example 'x7': .*2 words.*1 label"),
        ("a film", ("other",) * 3, "example 'x7': .*2 words.*3 labels"),
        ("a film", "other", "example 'x7': .*2 words.*output.*'other'"),
        ("a film", None, "example 'x7': .*2 words.*output.*None"),
        ("a film", ("other", "verb"), "example 'x7': .*output.*'verb'"),
        ("a \u200d film", ("other",) * 3, r"example 'x7': .*tokenizer.*'\\u200d'"),
    ],
)
def test_a_bad_example_is_named(text: str, output: Any, words: str, task: Any) -> None:
    with pytest.raises(ValueError, match=words):
        task.encode([Example(instruction=text, output=output, id="x7")])


@pytest.mark.parametrize("truncate", ["error", "left", "right", "drop"])
def test_long_texts_are_dropped_or_an_error_but_never_cut(truncate: Any, context: TaskContext) -> None:
    context = replace(context, max_length=6, truncate=truncate, counts={})
    task = TokenClassificationConfig(labels=LABELS).build(context)
    long = Example(instruction="the old the new the", output=("other",) * 5, id="x7")
    short = Example(instruction="the old", output=("other",) * 2, id="x8")
    if truncate == "drop":
        assert [e.example.id for e in task.encode([long, short])] == ["x8"]
        assert context.counts == {"texts dropped": 1}
    else:
        with pytest.raises(ValueError, match=r"example 'x7'.*data.max_length.*6"):
            task.encode([short, long])


def test_loss_equals_numpy(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("token_classification", checkpoint, tmp_path)
    task, graphdef = setup.task, setup.model.graphdef
    outputs = predictor(task, graphdef, setup.mesh, setup.buckets)(setup.model.params)([e.text for e in setup.encoded])

    @jax.jit
    def loss(params: Any, batch: Any) -> Any:
        return task.loss(nnx.merge(graphdef, params), batch, LossInputs())

    total, weight = loss(setup.model.params, pack(setup.parts(), setup.buckets, 1).batch)
    expected, words = 0.0, 0
    for logits, e in zip(outputs, setup.encoded, strict=True):
        z = logits.astype(np.float64)[e.target.first > 0]
        wanted = [LABELS.index(tag) for tag in e.example.output]  # type: ignore[union-attr, arg-type]
        expected += float((np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), wanted]).sum())
        words += len(wanted)
    assert float(weight) == words
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_scores_equal_scikit_learn(task: Any) -> None:
    encoded = task.encode(examples("token_classification", 20))
    scores = task.score(Predict(random_predict), encoded)
    outputs = random_predict([e.text for e in encoded])
    guesses = [[LABELS[i] for i in o.argmax(-1)[e.target.first > 0]] for o, e in zip(outputs, encoded, strict=True)]
    truth = [list(e.example.output) for e in encoded]
    flat_truth, flat_guess = sum(truth, []), sum(guesses, [])
    assert scores.metrics == pytest.approx(
        {
            "accuracy": sk.accuracy_score(flat_truth, flat_guess),
            "macro_f1": sk.f1_score(flat_truth, flat_guess, average="macro"),
            "micro_f1": sk.f1_score(flat_truth, flat_guess, average="micro"),
        }
    )
    assert scores.report == sk.classification_report(flat_truth, flat_guess, labels=LABELS, digits=4)
    for case, (t, g) in enumerate(zip(truth, guesses, strict=True)):
        assert scores.cases["accuracy"][case] == pytest.approx(sk.accuracy_score(t, g))
        assert scores.predictions[case]["prediction"] == g and scores.predictions[case]["reference"] == t


def test_baseline_knows_words_of_training_and_guesses_the_rest(task: Any) -> None:
    train = [
        Example(instruction="war film war", output=("subject", "other", "subject")),
        Example(instruction="war book book", output=("other", "other", "other")),
    ]
    test = [Example(instruction="war film unheard", output=("subject", "other", "other"))]
    (row,) = task.baselines(task.encode(train), task.encode(test)).values()
    assert row.predictions[0]["prediction"] == ["subject", "other", "other"]
    assert row.metrics["accuracy"] == 1
