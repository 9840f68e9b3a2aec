"""Dual-encoder retrieval against brute force in float64."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import SUBJECTS, Setup, examples, task_config

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.ranking.catalogue import Catalogue, Splits
from instructrec_jax.ranking.tuned_baselines import TUNED
from instructrec_jax.tasks import RetrievalConfig
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.prediction import Predict

ITEMS = 12


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def build(context: TaskContext, folder: Path, **settings: Any) -> Any:
    return task_config("retrieval", folder / "catalogue", **settings).build(context)


# ------------------------------------------------------------------ loss


def softmax_loss(scale: float, query: np.ndarray, items: np.ndarray, target: np.ndarray) -> float:
    """−log softmax over `items`, of which `target` is one, in float64."""
    logits = scale * items.astype(np.float64) @ query.astype(np.float64)
    wanted = scale * float(target.astype(np.float64) @ query.astype(np.float64))
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - wanted)


@pytest.mark.parametrize("softmax", ["in_batch", "sampled", "full"])
def test_loss_equals_brute_force(softmax: Any, checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("retrieval", checkpoint, tmp_path, softmax=softmax, negatives=4, temperature=0.1)
    task, graphdef = setup.task, setup.model.graphdef
    buffers = jax.device_get(setup.state.buffers)
    parts = setup.parts()
    batch = pack(parts, setup.buckets, 1).batch

    @jax.jit
    def loss(params: Any, batch: Any, buffers: Any) -> Any:
        return task.loss(nnx.merge(graphdef, params), batch, LossInputs(buffers=buffers))

    total, weight = loss(setup.model.params, batch, buffers)

    predict = predictor(task, graphdef, setup.mesh, setup.buckets)(setup.model.params)
    queries = predict([e.text for e in setup.encoded])
    items = np.stack(predict(task.item_texts))  # type: ignore[attr-defined]
    wanted = {e.target.items[0] for e in setup.encoded}
    if softmax == "in_batch":
        candidates = wanted
    elif softmax == "sampled":
        room = parts.own.items
        candidates = set(room[room < ITEMS].tolist())
        assert wanted < candidates and len(candidates) == len(wanted) + 4
    else:  # items of the batch as they are now, all others as the buffers remember them
        candidates = set(range(ITEMS))
        items = np.stack([items[i] if i in wanted else buffers["item_vectors"][i] for i in range(ITEMS)])
    expected, masked = [], 0
    for e, query in zip(setup.encoded, queries, strict=True):
        seen = set() if softmax == "full" else set(e.target.seen.tolist()) - {e.target.items[0]}
        masked += len(seen & candidates)
        chosen = np.stack([items[i] for i in sorted(candidates - seen)])
        expected.append(softmax_loss(10.0, query, chosen, items[e.target.items[0]]))
    assert softmax == "full" or masked > 3  # the case under test occurs
    assert float(weight) == len(setup.encoded)
    assert float(total) == pytest.approx(sum(expected), rel=1e-5)


def test_equal_targets_share_one_candidate(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    encoded = task.encode(examples("retrieval"))
    parts = task.gather(encoded, np.random.default_rng(0))
    wanted = sorted({e.target.items[0] for e in encoded})
    assert len(parts.texts) == len(encoded) + len(wanted)
    candidates = parts.own.items
    assert candidates[: len(wanted)].tolist() == wanted and (candidates[len(wanted) :] == ITEMS).all()
    # Shapes are those of any batch of this size, whatever the targets are.
    other = task.gather([encoded[0]] * len(encoded), np.random.default_rng(0))
    assert jax.tree.map(np.shape, other.own) == jax.tree.map(np.shape, parts.own)


def test_seen_items_are_no_negatives_but_a_seen_target_counts(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    encoded = task.encode(
        [
            Example(instruction="a film", output="item-3", history=("item-5", "item-7")),
            Example(instruction="a book", output="item-5", history=("item-5", "item-3")),
            Example(instruction="music", output="item-9"),
        ]
    )
    parts = task.gather(encoded, np.random.default_rng(0))
    candidates, allowed = parts.own.items, parts.own.allowed
    assert [set(candidates[row]) for row in allowed] == [{3, 9}, {5, 9}, {3, 5, 9}]
    assert candidates[parts.own.target].tolist() == [3, 5, 9]


def test_sampled_negatives_change_with_the_batch_and_end_with_the_catalogue(
    context: TaskContext, tmp_path: Path
) -> None:
    task = build(context, tmp_path, softmax="sampled", negatives=3)
    encoded = task.encode(examples("retrieval", 4))
    drawn = {tuple(task.gather(encoded, np.random.default_rng(n)).own.items) for n in range(9)}
    assert len(drawn) > 3
    greedy = build(context, tmp_path, softmax="sampled", negatives=50)
    candidates = greedy.gather(encoded, np.random.default_rng(0)).own.items
    assert sorted(candidates)[: ITEMS + 1] == [*range(ITEMS), ITEMS] and len(candidates) == 54


def test_refresh_gives_the_unit_vectors_of_all_items(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("retrieval", checkpoint, tmp_path, softmax="full", refresh_every=7, projection=16)
    assert setup.task.refresh_every == 7
    predict = predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    vectors = setup.task.refresh(predict)["item_vectors"]
    assert vectors.shape == (ITEMS, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-5)
    for number in (0, 7):
        alone = predict([setup.task.item_texts[number]])[0]  # type: ignore[attr-defined]
        np.testing.assert_allclose(vectors[number], alone, atol=1e-5)
    assert task_config("retrieval", tmp_path / "catalogue").build(setup.task.context).refresh_every == 0


# ------------------------------------------------------------------ evaluation


def random_predict(texts: Sequence[Text], *_: object) -> list[np.ndarray]:
    """A vector for each text that depends on its tokens alone."""
    return [np.random.default_rng(text.tokens.tolist()).normal(size=6).astype(np.float32) for text in texts]


def rank(task: Any, e: Any, among: set[int]) -> int:
    """1 + the number of other items with a higher score, by a loop."""
    query = random_predict([e.text])[0].astype(np.float64)
    scores = [float(v.astype(np.float64) @ query) for v in random_predict(task.item_texts)]
    return 1 + sum(scores[i] > scores[e.target.items[0]] for i in among - {e.target.items[0]})


def cases() -> list[Example]:
    """Each with exactly one seen item besides the target; in every fourth the target was seen too."""
    rng, made = np.random.default_rng(3), []
    for number, example in enumerate(examples("retrieval", 30)):
        target, seen = (int(i) for i in rng.choice(ITEMS, 2, replace=False))
        history = (f"item-{seen}", f"item-{target}") if number % 4 == 0 else (f"item-{seen}",)
        made.append(Example(instruction=example.instruction, output=f"item-{target}", history=history, id=example.id))
    return made


def test_score_equals_brute_force(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, cutoffs=[1, 3, 5], protocols=["full", "uni10"])
    encoded = task.encode(cases())
    scores = task.score(Predict(random_predict), encoded)
    unseen = [set(range(ITEMS)) - (set(e.target.seen.tolist()) - {e.target.items[0]}) for e in encoded]
    ranks = np.array([rank(task, e, among) for e, among in zip(encoded, unseen, strict=True)])
    assert (ranks > 5).any() and (ranks == 1).any()
    for k in (1, 3, 5):
        hit = ranks <= k
        expected = {"HR": hit.mean(), "NDCG": (hit / np.log2(ranks + 1)).mean(), "MRR": (hit / ranks).mean()}
        if k > 1:
            np.testing.assert_allclose(scores.cases[f"NDCG@{k}"], hit / np.log2(ranks + 1))
        for name, value in expected.items():
            if f"{name}@{k}" in ("NDCG@1", "MRR@1", "MRR@3"):  # at 1 all three are the same; one MRR is enough
                assert f"{name}@{k}" not in scores.metrics
                continue
            assert scores.metrics[f"{name}@{k}"] == pytest.approx(value)
            # Ten unseen items besides the target are all there are, so the sample is the full catalogue.
            assert scores.metrics[f"uni10 {name}@{k}"] == pytest.approx(value)
    assert task.metric == "NDCG@5" and task.metric in scores.metrics


def test_seen_items_are_masked(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    open_case, masked = task.encode(
        [
            Example(instruction="a film", output="item-0"),
            Example(instruction="a film", output="item-0", history=tuple(f"item-{i}" for i in range(1, ITEMS))),
        ]
    )
    assert rank(task, open_case, set(range(ITEMS))) > 1
    scores = task.score(Predict(random_predict), [open_case, masked])
    assert scores.cases["NDCG@10"][0] < 1 and scores.cases["NDCG@10"][1] == 1
    assert scores.predictions[1]["prediction"] == ["item-0"]


def test_predictions_are_in_the_order_of_the_scores(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, cutoffs=[4])
    encoded = task.encode(cases())
    vectors = np.stack(random_predict(task.item_texts))
    for e, record in zip(encoded, task.score(Predict(random_predict), encoded).predictions, strict=True):
        query = random_predict([e.text])[0]
        allowed = [i for i in range(ITEMS) if i not in e.target.seen or i == e.target.items[0]]
        best = sorted(allowed, key=lambda i: -float(vectors[i] @ query))
        assert record["prediction"] == [f"item-{i}" for i in best]
        assert record["id"] == e.example.id and record["reference"] == [f"item-{e.target.items[0]}"]
        np.testing.assert_allclose(record["scores"], vectors[best] @ query, atol=1e-5)


def test_blocks_change_nothing(context: TaskContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = build(context, tmp_path, protocols=["full", "uni3"], cutoffs=[1, 3])
    encoded = task.encode(cases())
    whole = task.score(Predict(random_predict), encoded)
    monkeypatch.setattr("instructrec_jax.ranking.evaluation.BLOCK", 7)
    blocks = task.score(Predict(random_predict), encoded)
    assert blocks.metrics == pytest.approx(whole.metrics)
    assert [r["id"] for r in blocks.predictions] == [r["id"] for r in whole.predictions]


def test_the_metric_of_a_single_cutoff_of_one_exists(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, cutoffs=[1])
    scores = task.score(Predict(random_predict), task.encode(cases()))
    assert task.metric in scores.metrics and task.metric in scores.cases
    assert scores.metrics[task.metric] == pytest.approx(scores.cases[task.metric].mean())


def test_too_many_candidates_are_an_error(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, protocols=["uni11"])
    with pytest.raises(ValueError, match="uni11.*10 of 12"):
        task.score(Predict(random_predict), task.encode(cases()))


def test_showcase(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    shown = task.showcase(Predict(random_predict), task.encode(cases()))
    assert len(shown) == 5 and all(len(record["answers"]) == 5 for record in shown)


def test_baselines_with_and_without_splits(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    test = task.encode(cases())
    assert set(task.baselines([], test)) == {"random", "BM25"}
    sequences = [np.array(s, np.int32) for s in ([0, 1, 2], [1, 2, 3], [2], [5, 2, 1])]
    nothing = [np.empty(0, np.int32)] * 4
    Splits(list("abcd"), sequences, nothing, nothing).save(tmp_path / "catalogue", task.catalogue)
    task = build(context, tmp_path)
    test = task.encode(cases())
    rows = task.baselines([], test)
    assert set(rows) == {"random", "popularity", "Markov-1", "coKNN", "coKNN-source", *TUNED, "BM25"}
    counts = np.bincount(np.concatenate(sequences), minlength=ITEMS)
    for case, e in enumerate(test):  # popularity by hand: the mean gain over the places that ties may give
        others = [i for i in range(ITEMS) if i != e.target.items[0] and i not in e.target.seen]
        better = sum(counts[i] > counts[e.target.items[0]] for i in others)
        tied = sum(counts[i] == counts[e.target.items[0]] for i in others)
        places = np.arange(better + 1, better + tied + 2)
        gain = np.where(places <= 10, 1 / np.log2(places + 1), 0).mean()
        assert rows["popularity"].cases["NDCG@10"][case] == pytest.approx(gain)
    assert all(len(scores.cases["NDCG@10"]) == len(test) for scores in rows.values())


def test_bm25_reads_the_instruction(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    test = task.encode([Example(instruction="crime", output="item-3"), Example(instruction="space", output="item-2")])
    answers = [record["prediction"] for record in task.baselines([], test)["BM25"].predictions]
    for subject, found in zip(("crime", "space"), answers, strict=True):
        assert {int(item[5:]) % 5 for item in found[:2]} == {SUBJECTS.index(subject)}


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": "item-99"}, "example 'x7'.*'item-99'.*12 items"),
        ({"history": ("item-1", "nothing")}, "example 'x7'.*'nothing'"),
        ({"output": 3}, "example 'x7'.*output.*3"),
        ({"output": ("item-1", "item-1")}, "example 'x7'.*output.*'item-1'"),
        ({"output": ()}, "example 'x7'.*output"),
        ({"output": None}, "example 'x7'.*output.*None"),
    ],
)
def test_a_bad_example_is_named(changes: dict[str, Any], words: str, context: TaskContext, tmp_path: Path) -> None:
    bad = Example(**({"instruction": "a film", "output": "item-1", "id": "x7"} | changes))
    with pytest.raises(ValueError, match=words):
        build(context, tmp_path).encode([*examples("retrieval", 3), bad])


def test_item_texts_too_long(context: TaskContext, tmp_path: Path) -> None:
    short = copy.copy(context)
    short.max_length = 12
    with pytest.raises(ValueError, match=r"item 'item-2'.*data.max_length.*12"):
        build(short, tmp_path)
    short.truncate = "drop"
    with pytest.raises(ValueError, match="data.truncate"):
        build(short, tmp_path)
    short.truncate = "right"
    task = build(short, tmp_path)
    assert max(len(text.tokens) for text in task.item_texts) == 12


def test_a_catalogue_that_is_not_there(context: TaskContext, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="items.parquet.*instructrec_jax.prepare"):
        RetrievalConfig(catalogue=str(tmp_path / "nowhere")).build(context)


def test_lower_case_applies_to_items_and_instructions(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "catalogue").mkdir()
    Catalogue(["x", "y"], ["X", "Y"], ["A Film", "A Song"]).save(tmp_path / "catalogue")
    asked: list[str] = []

    def spy(texts: list[str], **settings: Any) -> Any:
        asked.extend(texts)
        return tokenizer(texts, **settings)

    task = RetrievalConfig(catalogue=str(tmp_path / "catalogue")).build(TaskContext(spy, 64, lower_case=True))
    task.encode([Example(instruction="A BOOK", output="x")])
    assert asked == ["a film", "a song", "a book"]
