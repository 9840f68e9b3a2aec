"""The cross-scorer against texts that are built, scored and summed one by one."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from flax import nnx
from helpers import Setup, examples, task_config
from tiny_runs import tiny_run
from tokenizers import Tokenizer, processors
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, PreTrainedTokenizerFast

from instructrec_jax.answering.exporting import export
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.data.prompts import render
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.files import read_json
from instructrec_jax.ranking.catalogue import Splits
from instructrec_jax.runs import model as models
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.train import train

ITEMS = 12


@pytest.fixture(scope="module")
def bert(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The tests' tokenizer with BERT's own encoding of two texts."""
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ids = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    return BertTokenizerFast(tokenizer_object=core, **names)


@pytest.fixture(scope="module")
def pair_checkpoint(checkpoint: Path, bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    bert.save_pretrained(folder)
    return folder


@pytest.fixture
def context(bert: Any) -> TaskContext:
    return TaskContext(bert, 128)


def build(context: TaskContext, folder: Path, **settings: Any) -> Any:
    return task_config("reranker", folder / "catalogue", **({"item_length": None} | settings)).build(context)


def set_up(checkpoint: Path, folder: Path, **settings: Any) -> Setup:
    """With larger weights than usual, so that scores differ."""
    setup = Setup("reranker", checkpoint, folder, **settings)
    setup.model.params = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, setup.model.params)
    return setup


def scorer(setup: Setup) -> Callable[[Text], float]:
    """The score of one text in a row of its own."""

    @jax.jit
    def score(params: Any, tokens: Any, types: Any, inside: Any) -> Any:
        network = nnx.merge(setup.model.graphdef, params)
        hidden = network.backbone(tokens, inside, np.arange(64, dtype=np.int32)[None], types)
        return network.head(network.backbone, hidden, inside, 1)[0, 0, 0]

    def alone(text: Text) -> float:
        rows = np.zeros((3, 1, 64), np.int32)
        rows[0, 0, : len(text.tokens)] = text.tokens
        rows[1, 0, : len(text.tokens)] = 0 if text.types is None else text.types
        rows[2, 0, : len(text.tokens)] = 1
        return float(score(setup.model.params, *rows))

    return alone


# ------------------------------------------------------------------ texts


def test_a_pair_is_the_tokenizers_own(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    encoded = task.encode(examples("reranker", 6))
    texts = iter(task.pairs(encoded, [np.arange(ITEMS)] * 6))
    for e in encoded:
        for item in task.catalogue.texts:
            expected, text = context.tokenizer(render(e.example), item), next(texts)
            assert text.tokens.tolist() == expected["input_ids"] and text.types is not None
            assert text.types.tolist() == expected["token_type_ids"] and 1 in text.types


def test_networks_without_token_types_get_none(bert: Any, tmp_path: Path) -> None:
    plain = copy.copy(bert)
    plain.model_input_names = ["input_ids", "attention_mask"]
    task = build(TaskContext(plain, 128), tmp_path)
    (text,) = task.pairs(task.encode(examples("reranker", 1)), [np.array([3])])
    assert text.types is None


def test_a_tokenizer_without_pairs_has_a_separator(tokenizer: Any, tmp_path: Path) -> None:
    """The tests' tokenizer puts nothing between two texts."""
    task = build(TaskContext(tokenizer, 64), tmp_path)
    (text,) = task.pairs(task.encode([Example(instruction="a book", output="item-1")]), [np.array([1])])
    expected = tokenizer("a book [SEP] " + task.catalogue.texts[1])["input_ids"]
    assert text.tokens.tolist() == expected and expected.count(tokenizer.sep_token_id) == 2


def test_a_line_break_separates_where_there_is_no_separator_either(tmp_path: Path) -> None:
    plain = byte_tokenizer(bos=True)
    task = build(TaskContext(plain, 200), tmp_path)
    (text,) = task.pairs(task.encode([Example(instruction="A BOOK", output="item-1")]), [np.array([1])])
    assert plain.decode(text.tokens) == "<s>A BOOK\n" + task.catalogue.texts[1]
    lower = build(TaskContext(plain, 200, lower_case=True), tmp_path)
    (text,) = lower.pairs(lower.encode([Example(instruction="A BOOK", output="item-1")]), [np.array([1])])
    assert plain.decode(text.tokens) == "<s>a book\n" + task.catalogue.texts[1]


def test_a_tokenizer_that_cannot_separate_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(ValueError, match="sep_token"):
        build(TaskContext(bare, 64), tmp_path)


@pytest.mark.parametrize("truncate", ["left", "right"])
def test_long_instructions_are_cut_alike_for_all_items_and_items_never(
    truncate: Any, bert: Any, tmp_path: Path
) -> None:
    context = TaskContext(bert, 44, truncate)
    task = build(context, tmp_path)
    words = [f"{a} {b}" for a in ("good", "bad") for b in ("book", "film", "war", "music")] * 2
    whole = bert(" ".join(words), add_special_tokens=False)["input_ids"]
    short = Example(instruction="a book", output="item-1")
    encoded = task.encode([Example(instruction=" ".join(words), output="item-1"), short])
    assert context.counts == {"instructions cut": 1}
    longest = max(len(bert(text, add_special_tokens=False)["input_ids"]) for text in task.catalogue.texts)
    assert 0 < task.room == 44 - 3 - longest < len(whole)
    kept = whole[-task.room :] if truncate == "left" else whole[: task.room]
    for item, text in enumerate(task.pairs(encoded[:1], [np.arange(ITEMS)])):
        own = bert(task.catalogue.texts[item], add_special_tokens=False)["input_ids"]
        assert text.tokens.tolist() == [bert.cls_token_id, *kept, bert.sep_token_id, *own, bert.sep_token_id]


def test_long_instructions_are_an_error_or_dropped(bert: Any, tmp_path: Path) -> None:
    long = Example(instruction="good book " * 20, output="item-1", id="x7")
    short = Example(instruction="a book", output="item-1")
    with pytest.raises(ValueError, match=r"example 'x7'.*data.max_length"):
        build(TaskContext(bert, 44), tmp_path).encode([short, long])
    context = TaskContext(bert, 44, "drop")
    assert [e.example for e in build(context, tmp_path).encode([long, short])] == [short]
    assert context.counts == {"instructions dropped": 1}


def test_long_items_are_named_and_cut_only_when_asked(bert: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="item 'item-11'.*data.max_length"):
        build(TaskContext(bert, 20, "right"), tmp_path)
    context = TaskContext(bert, 20)
    task = build(context, tmp_path, item_length=8)
    assert max(map(len, task.items)) == 8 and task.room == 20 - 3 - 8
    assert context.counts["item texts cut"] > 0


def test_texts_of_no_catalogue_are_paired_as_items_are(bert: Any, tmp_path: Path) -> None:
    context = TaskContext(bert, 44, "right")
    task = build(context, tmp_path)
    words = "good book " * 20
    for instruction in ("a book", words):
        encoded = task.encode([Example(instruction=instruction, output="item-1")])
        of_items = task.pairs(encoded, [np.arange(ITEMS)])
        for one, other in zip(task.free_pairs(instruction, task.catalogue.texts), of_items, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
    (cut,) = task.free_pairs("a book", [words])
    assert len(cut.tokens) == 44 and context.counts["documents cut"] == 1
    strict = build(TaskContext(bert, 44), tmp_path)
    with pytest.raises(ValueError, match="document 1 .*44"):
        strict.free_pairs("a book", ["good", words])
    for query, document, named in ((" ", "good", "query"), ("good", " ", "document 0")):
        with pytest.raises(ValueError, match=named):
            strict.free_pairs(query, [document])


# ------------------------------------------------------------------ negatives


def test_negatives_are_distinct_unseen_and_uniform(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, negatives=3)
    example = Example(instruction="a", output=("item-1", "item-7"), history=("item-0", "item-7", "item-11", "item-4"))
    (e,) = task.encode([example])
    rng = np.random.default_rng(0)
    drawn = [task.negatives(e, rng) for _ in range(3000)]
    assert all(len(set(d.tolist())) == 3 for d in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=ITEMS)
    open_items = [2, 3, 5, 6, 8, 9, 10]
    assert counts.sum() == counts[open_items].sum() == 9000
    np.testing.assert_allclose(counts[open_items] / 9000, 1 / 7, atol=0.015)
    greedy = build(context, tmp_path, negatives=50)
    assert sorted(greedy.negatives(e, rng).tolist()) == open_items


def test_negatives_by_popularity_and_of_candidates(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, negatives=1, draw="popularity")
    sequences = [np.array([0, 1, 1, 1, 1, 2, 2], np.int32)]
    Splits(["a"], sequences, [sequences[0][:0]], [sequences[0][:0]]).save(tmp_path / "catalogue", task.catalogue)
    (e,) = task.encode([Example(instruction="a", output="item-1", history=("item-3",))])
    rng = np.random.default_rng(0)
    counts = np.bincount([task.negatives(e, rng)[0] for _ in range(4000)], minlength=ITEMS)
    weights = np.array([2, 0, 3, 0, *[1] * 8])
    np.testing.assert_allclose(counts / 4000, weights / weights.sum(), atol=0.03)
    given = Example(instruction="a", output="item-1", candidates=("item-5", "item-1", "item-9", "item-3"))
    (e,) = build(context, tmp_path, negatives=2).encode([given])
    drawn = [tuple(build(context, tmp_path, negatives=2).negatives(e, rng).tolist()) for _ in range(30)]
    assert {item for pair in drawn for item in pair} == {3, 5, 9} and {len(set(pair)) for pair in drawn} == {2}


# ------------------------------------------------------------------ loss


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_loss_equals_brute_force(loss: Any, pair_checkpoint: Path, tmp_path: Path) -> None:
    setup = set_up(pair_checkpoint, tmp_path, loss=loss, negatives=3)
    task: Any = setup.task
    # one example with fewer candidates than negatives
    few = Example(instruction="a book", output="item-2", candidates=("item-4", "item-2"))
    setup.encoded = [*setup.encoded[:6], *task.encode([few])]
    batch = pack(setup.parts(), setup.buckets, 1).batch

    @jax.jit
    def device_loss(params: Any, batch: Any) -> Any:
        model = nnx.merge(setup.model.graphdef, params)
        return task.loss(model, batch, LossInputs())

    total, weight = device_loss(setup.model.params, batch)
    rng, alone = np.random.default_rng(0), scorer(setup)
    lists = [np.append(rng.choice(e.target.items), task.negatives(e, rng)) for e in setup.encoded]
    assert [len(items) for items in lists] == [4] * 6 + [2]
    expected = []
    for e, items in zip(setup.encoded, lists, strict=True):
        scores = np.array([alone(text) for text in task.pairs([e], [items])])
        if loss == "listwise":
            expected.append(np.log(np.exp(scores).sum()) - scores[0])
        else:
            expected += [np.log1p(np.exp(-scores[0])), *np.log1p(np.exp(scores[1:]))]
    assert float(weight) == len(expected)
    assert float(total) == pytest.approx(sum(expected), rel=1e-5)


# ------------------------------------------------------------------ scores


def test_scores_of_candidates_equal_texts_alone(pair_checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    setup = set_up(pair_checkpoint, tmp_path)
    task: Any = setup.task
    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params).remember()
    chosen, alone = setup.encoded[:5], scorer(setup)
    candidates = np.stack([np.random.default_rng(n).permutation(ITEMS)[:4] for n in range(5)])
    expected = [[alone(text) for text in task.pairs([e], [row])] for e, row in zip(chosen, candidates, strict=True)]
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(task.score_candidates(predict, chosen, candidates), expected, atol=1e-5)
    monkeypatch.setattr("instructrec_jax.tasks.ranking.reranker.PAIRS", 9)
    np.testing.assert_allclose(task.score_candidates(predict, chosen, candidates), expected, atol=1e-5)
    scores = task.score(predict, setup.encoded)
    assert 0 < scores.metrics["uni9 NDCG@5"] < 1


def test_a_small_catalogue_is_ranked_whole_and_a_large_one_refused(
    context: TaskContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = build(context, tmp_path, protocols=["full"])

    predict = Predict(lambda texts, *_: [np.float32(text.tokens.sum()) for text in texts])
    encoded = task.encode(examples("reranker", 4))
    found = task.score_items(predict, encoded)(slice(1, 3))
    sums = [text.tokens.sum() for text in task.pairs(encoded[1:3], [np.arange(ITEMS)] * 2)]
    np.testing.assert_allclose(found, np.reshape(sums, (2, ITEMS)))
    assert task.metric in task.score(predict, encoded).metrics
    monkeypatch.setattr("instructrec_jax.tasks.ranking.reranker.MOST_ITEMS", 11)
    with pytest.raises(ValueError, match="task.protocols.*12 items"):
        build(context, tmp_path, protocols=["full"])


def test_a_cross_encoders_own_head_is_tuned_further(pair_checkpoint: Path, tmp_path: Path, bert: Any) -> None:
    """A checkpoint with one output scores as transformers does, before any step."""
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(pair_checkpoint, num_labels=1)
    theirs = BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "cross")
    bert.save_pretrained(tmp_path / "cross")
    setup = Setup("reranker", tmp_path / "cross", tmp_path)
    task: Any = setup.task
    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    e = setup.encoded[0]
    found = task.score_candidates(predict, [e], np.arange(3)[None])[0]
    pairs = bert([render(e.example)] * 3, task.catalogue.texts[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**pairs).logits[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_decoders_score_pairs_too(language_models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    folder.mkdir()
    for file in language_models["gpt2"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, sep_token="[SEP]")
    tokenizer.save_pretrained(folder)
    setup = set_up(folder, tmp_path)
    task: Any = setup.task
    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    found = task.score_candidates(predict, setup.encoded[:2], np.array([[0, 5], [7, 2]]))
    assert np.ptp(found) > 1e-2
    texts = task.pairs(setup.encoded[:2], [np.array([0, 5]), np.array([7, 2])])
    alone = scorer(setup)
    np.testing.assert_allclose(found.ravel(), [alone(text) for text in texts], atol=1e-5)


def test_settings_that_cannot_be(context: TaskContext, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task.negatives"):
        build(context, tmp_path, negatives=0)
    with pytest.raises(ValueError, match="task.item_length"):
        build(context, tmp_path, item_length=0)


def test_a_whole_run_learns_and_exports_a_cross_encoder(pair_checkpoint: Path, tmp_path: Path, bert: Any) -> None:
    """Train, evaluate, export: transformers scores the exported pairs as we do."""
    config = tiny_run("retrieval", pair_checkpoint, tmp_path, data__max_length=48, optimizer__learning_rate=1e-2)
    config = replace(config, task=task_config("reranker", tmp_path / "catalogue", loss="listwise"), steps=4)
    run = train(config)
    result = read_json(run / "evaluation.json")
    assert "after tuning" in str(result) and "uni9" in str(result)
    export(run, tmp_path / "out", format="hf")
    opened = Run.open(run)
    settings, task, mesh = opened.config, opened.task, opened.mesh
    model = models.restored_model(settings, task, run, mesh)
    predict = predictor(task, model.graphdef, mesh, (32, 48))(model.params)
    (e,) = task.encode([Example(instruction="a good film", output="item-1")])
    found = task.score_candidates(predict, [e], np.arange(3)[None])[0]  # type: ignore[attr-defined]
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    pairs = bert(["a good film"] * 3, task.catalogue.texts[:3], padding=True, return_tensors="pt")  # type: ignore[attr-defined]
    with torch.no_grad():
        np.testing.assert_allclose(found, theirs(**pairs).logits[:, 0], atol=1e-4)
