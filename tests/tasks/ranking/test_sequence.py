"""The sequence task against brute force in float64."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import Setup, examples, run_steps, task_config
from tiny_runs import final_parameters, tiny_run

from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.ranking.catalogue import Splits
from instructrec_jax.ranking.item_factors import item_factors
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.train import train
from instructrec_jax.training.training_config import OptimizerConfig

ITEMS, STEPS = 12, 250


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def build(context: TaskContext, folder: Path, **settings: Any) -> Any:
    return task_config("sequence", folder / "catalogue", **settings).build(context)


def device_loss(setup: Setup) -> tuple[float, float]:
    task, graphdef = setup.task, setup.model.graphdef
    batch = pack(setup.parts(), setup.buckets, 1).batch

    @jax.jit
    def loss(params: Any, batch: Any, buffers: Any) -> Any:
        return task.loss(nnx.merge(graphdef, params), batch, LossInputs(buffers=buffers))

    total, weight = loss(setup.model.params, batch, jax.device_get(setup.state.buffers))
    return float(total), float(weight)


def scores_of_prefixes(setup: Setup, task: Any, e: Any, buffers: dict[str, np.ndarray]) -> np.ndarray:
    """float64 [places, items]: each prefix of the sequence by itself, in a row of its own, scored against all items."""
    head = setup.model.network.head
    table, bias = (np.asarray(x, np.float64) for x in head.item_vectors(buffers["item_texts"]))
    rows = []
    sequence = np.append(task._row(e), e.text.tokens[1:]).astype(np.int32)
    for length in range(1, len(sequence) + 1):
        tokens = sequence[None, :length]
        places = (tokens, np.ones_like(tokens), np.arange(length, dtype=np.int32)[None])
        queries = head(*places, buffers["item_texts"], buffers["instruction_texts"])
        rows.append(table @ np.asarray(queries, np.float64)[0, -1] + bias)
    return np.stack(rows)


@pytest.mark.parametrize("seen", ["left_out", "negatives"])
@pytest.mark.parametrize("supervise", ["all", "last"])
@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_loss_equals_brute_force(softmax: Any, supervise: Any, seen: Any, checkpoint: Path, tmp_path: Path) -> None:
    settings = {"softmax": softmax, "supervise": supervise, "negatives": 6, "seen_items": seen}
    setup = Setup("sequence", checkpoint, tmp_path, **settings)
    task: Any = setup.task
    setup.encoded = setup.encoded[:9]
    total, weight = device_loss(setup)
    buffers = jax.device_get(setup.state.buffers)
    drawn = setup.parts().own.sample
    expected, places = 0.0, 0
    for e in setup.encoded:
        scores = scores_of_prefixes(setup, task, e, buffers)
        labels = [*e.text.tokens[1:], e.target.items[0]]
        for place in range(len(labels)) if supervise == "all" else [len(labels) - 1]:
            wanted = scores[place, labels[place]]
            read = labels[:place] if seen == "left_out" else []
            if softmax == "full":
                left = np.setdiff1d(np.arange(ITEMS), np.setdiff1d(read, labels[place]))
                partition = np.exp(scores[place, left]).sum()
            else:  # every item of the catalogue is drawn with the same probability: nobody chose anything yet
                others = [np.exp(scores[place, n]) * ITEMS / 6 for n in drawn.items if n not in (labels[place], *read)]
                partition = np.exp(wanted) + sum(others)
            expected += np.log(partition) - wanted
            places += 1
    assert weight == places
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cold_items", ["negatives", "left_out"])
@pytest.mark.parametrize("loss", ["bce", "gbce"])
def test_loss_against_uniform_negatives_equals_brute_force(
    loss: Any, cold_items: Any, checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"loss": loss, "negatives": 3, "cold_items": cold_items}
    setup = Setup("sequence", checkpoint, tmp_path, **settings)
    task: Any = setup.task
    setup.encoded = setup.encoded[:9]
    total, weight = device_loss(setup)
    buffers = jax.device_get(setup.state.buffers)
    share = 3 / (ITEMS - 1)
    power = 1.0 if loss == "bce" else share * (0.75 * (1 - 1 / share) + 1 / share)
    expected, place = 0.0, 0
    drawn = setup.parts().own.negatives
    for e in setup.encoded:
        scores = scores_of_prefixes(setup, task, e, buffers)
        for row, label in zip(scores, [*e.text.tokens[1:], e.target.items[0]], strict=True):
            others = drawn[place]
            assert not set(others) & {*e.target.history, *e.target.items}
            chance, chances = 1 / (1 + np.exp(-row[label])), 1 / (1 + np.exp(-row[others]))
            expected += -power * np.log(chance) - np.log(1 - chances).sum()
            place += 1
    assert weight == place == len(drawn)
    assert total == pytest.approx(expected, rel=1e-5)


def test_negatives_are_items_of_training_where_others_are_left_out(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, loss="bce", negatives=50, cold_items="left_out")
    encoded = task.encode([Example(instruction="a", history=("item-4", "item-7"), output="item-2")])
    more = task.encode([Example(instruction="a", history=("item-9",), output="item-5")])
    task.prepare([*encoded, *more])
    assert set(task.gather(encoded, np.random.default_rng(0)).own.negatives.ravel()) == {5, 9}


def test_a_prediction_has_the_masked_item_at_its_end(checkpoint: Path, tmp_path: Path) -> None:
    """Scores are those of the sequence [instruction, history, mask], and later items count for earlier places."""
    setup = Setup("sequence", checkpoint, tmp_path, objective="masked")
    task: Any = setup.task
    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    chosen = setup.encoded[3:9]
    found, buffers = task.score_items(predict, chosen)(slice(0, 6)), task.refresh(predict)
    head = setup.model.network.head
    table, bias = (np.asarray(x, np.float64) for x in head.item_vectors(buffers["item_texts"]))
    for row, e in zip(found, chosen, strict=True):
        assert e.text.tokens.tolist() == [0, *e.target.history[-50:], -1]
        tokens = np.append(task._row(e), e.text.tokens[1:]).astype(np.int32)[None]
        places = (tokens, np.ones_like(tokens), np.arange(tokens.size, dtype=np.int32)[None])
        queries = head(*places, buffers["item_texts"], buffers["instruction_texts"])
        np.testing.assert_allclose(row, table @ np.asarray(queries, np.float64)[0, -1] + bias, atol=1e-5)
        other = tokens.copy()
        other[0, -1] = 3
        changed = head(other, *places[1:], buffers["item_texts"], buffers["instruction_texts"])
        assert np.abs(changed - queries)[0, 0].max() > 1e-5


def in_a_circle(count: int, seed: int) -> list[Example]:
    """Histories in which the item after each one is known: the next number, after the last the first."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        items = [f"item-{number % ITEMS}" for number in rng.integers(ITEMS) + np.arange(rng.integers(3, 9))]
        made.append(Example(instruction="next", history=tuple(items[:-1]), output=items[-1]))
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "bce", "activation": "relu", "mlp_factor": 1, "item_bias": False, "norm": "post"},
        {"objective": "masked", "mask_share": 0.3},
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                {"network": "gru", "positions": "none"},
                {"loss": "gbce", "negatives": 3, "activation": "relu", "mlp_factor": 1, "item_bias": False},
                {"network": "hstu", "positions": "relative"},
                {"activation": "swiglu", "positions": "both", "label_smoothing": 0.1},
            )
        ),
    ],
)
def test_every_network_and_loss_learns_what_comes_next(
    settings: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup=0.0, schedule="constant", weight_decay=0.0)
    setup = Setup("sequence", checkpoint, tmp_path, optimizer=optimizer, text=False, dropout=0.0, **settings)
    task: Any = setup.task
    encoded = task.encode(in_a_circle(32, 0))
    parts = [task.gather(encoded, np.random.default_rng(step)) for step in range(STEPS)]
    _, params = run_steps(setup, [pack(each, setup.buckets, setup.row_multiple).batch for each in parts])
    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(params)
    asked = task.encode(in_a_circle(40, 1))
    scores = np.array(task.score_items(predict, asked)(slice(0, 40)))
    for row, e in zip(scores, asked, strict=True):
        row[e.target.seen] = -np.inf  # items of the history are no negatives of bce and gbce
    assert np.mean(scores.argmax(-1) == [e.target.items[0] for e in asked]) > 0.9


def test_evaluation_scores_equal_brute_force(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("sequence", checkpoint, tmp_path)
    task: Any = setup.task
    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    chosen = setup.encoded[3:12]
    found = task.score_items(predict, chosen)(slice(0, 9))
    raw = np.stack(predict(task.item_texts))
    np.testing.assert_allclose(np.linalg.norm(raw, axis=1), 1, atol=1e-5)
    words = np.stack(predict(list({id(t): t for e in setup.encoded if (t := e.target.instruction)}.values())))
    refreshed = task.refresh(predict)
    np.testing.assert_allclose(refreshed["item_texts"], (raw - raw.mean(0)) / raw.std(), atol=1e-5)
    np.testing.assert_allclose(refreshed["instruction_texts"], words * np.sqrt(words.shape[1]), atol=1e-5)
    for row, e in zip(found, chosen, strict=True):
        np.testing.assert_allclose(row, scores_of_prefixes(setup, task, e, refreshed)[-1], atol=1e-5)


def test_without_text_there_is_no_backbone_and_no_word_counts(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("sequence", checkpoint, tmp_path, text=False)
    assert set(setup.model.params) == {"head"}
    task: Any = setup.task
    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    history = ("item-3", "item-8")
    asked = [Example(instruction=words, history=history, output="item-1") for words in ("a film", "quiet music")]
    first, second = task.score_items(predict, task.encode(asked))(slice(0, 2))
    np.testing.assert_allclose(first, second, atol=1e-6)
    with_words: Any = Setup("sequence", checkpoint, tmp_path)
    predict = predictor(with_words.task, with_words.model.graphdef, with_words.mesh, with_words.buckets)
    encoded = with_words.task.encode(asked)
    first, second = with_words.task.score_items(predict(with_words.model.params), encoded)(slice(0, 2))
    assert np.abs(first - second).max() > 1e-4


def test_the_backbone_is_frozen_and_kept_out_of_the_optimizer(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("sequence", checkpoint, tmp_path)
    assert set(setup.state.params) == {"head"} and set(setup.state.frozen) == {"backbone"}


def test_histories_are_cut_to_the_limit_from_the_left_and_counted(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, history_limit=2)
    history = ("item-4", "item-5", "item-6")
    (e,) = task.encode([Example(instruction="a film", history=history, output="item-1")])
    assert e.text.tokens.tolist() == [0, 5, 6]
    assert e.target.seen.tolist() == [4, 5, 6]
    assert context.counts == {"history items beyond task.history_limit": 1}


def test_training_sees_every_window_of_a_long_history(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, history_limit=2)
    history = tuple(f"item-{i}" for i in (4, 5, 6, 7))
    encoded = task.encode([Example(instruction="a film", history=history, output="item-1")])
    task.prepare(encoded)
    seen = set()
    for seed in range(40):
        parts = task.gather(encoded, np.random.default_rng(seed))
        seen.add((*parts.texts[0].tokens.tolist(), *parts.own.labels.tolist()))
    assert seen == {(0, 4, 5, 4, 5, 6), (0, 5, 6, 5, 6, 7), (0, 6, 7, 6, 7, 1)}
    last = build(context, tmp_path, history_limit=2, supervise="last")
    last.prepare(encoded)
    parts = last.gather(last.encode([e.example for e in encoded]), np.random.default_rng(0))
    assert parts.texts[0].tokens.tolist() == [0, 6, 7] and parts.own.supervised.tolist() == [0, 0, 1]


def test_negatives_are_drawn_by_popularity_and_corrected_for_it(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, softmax="sampled", negatives=4000)
    sequences = [np.array([0, 1, 0, 0], np.int32), np.array([1], np.int32)]
    nothing = [np.empty(0, np.int32)] * 2
    Splits(["a", "b"], sequences, nothing, nothing).save(tmp_path / "catalogue", task.catalogue)
    encoded = task.encode(examples("sequence", 2))
    task.prepare(encoded)
    parts = task.gather(encoded, np.random.default_rng(0))
    chance = np.array([4, 3] + [1] * 10) / 17
    share = np.bincount(parts.own.sample.items, minlength=ITEMS) / 4000
    np.testing.assert_allclose(share, chance, atol=0.03)
    expected = np.log(4000 * chance[parts.own.sample.items])
    np.testing.assert_allclose(parts.own.sample.log_expected, expected, rtol=1e-5)


def test_an_instruction_that_training_did_not_begin_with_is_named(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    known, new = (task.encode([Example(instruction=words, output="item-1")]) for words in ("a film", "old music"))
    task.prepare(known)
    assert task.gather(known, np.random.default_rng(0)).texts[0].tokens.tolist() == [0]
    with pytest.raises(ValueError, match="old music"):
        task.gather(new, np.random.default_rng(0))


def test_two_thousand_requests_leave_nothing_and_have_few_shapes(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    shapes = set()

    def predict(texts: Any, own: Any = None, *_: Any) -> list[np.ndarray]:
        shapes.add(tuple(array.shape for array in jax.tree.leaves(own)))
        return [np.random.default_rng(text.tokens.tolist()).normal(size=17).astype(np.float32) for text in texts]

    def held() -> int:
        return sum(len(value) for value in vars(task).values() if isinstance(value, dict | list | set))

    rng = np.random.default_rng(0)
    for number in range(2000 // 8):
        words = [" ".join(rng.choice(list("abcdefghij"), 6)) for _ in range(8)]
        task.query_vectors(predict, task.encode([Example(instruction=w, output="item-1") for w in words]))
        if not number:
            first, before = set(shapes), held()
    assert shapes == first and held() == before
    task.query_vectors(predict, task.encode([Example(instruction="a film", output="item-1")]))
    assert shapes == first  # of another number of requests too


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"history_limit": 64}, "data.max_length.*64.*task.history_limit.*65"),
        ({"history_limit": 0}, "task.history_limit"),
        ({"text": False, "ids": False}, "task.text.*task.ids"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str, context: TaskContext, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        build(context, tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"text": False, "objective": "masked", "loss": "gbce", "negatives": 3, "cold_items": "left_out"},
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({"text": False}, {"ids": False}, {"network": "gru"})),
    ],
)
def test_a_run_goes_on_from_its_checkpoint(settings: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    """With every kind of item vector: what was remembered of texts is in the checkpoint, or made anew."""
    changes = {f"task__{name}": value for name, value in settings.items()}
    config = tiny_run("sequence", checkpoint, tmp_path, evaluation__every=3, checkpoint__every=3, **changes)
    train(config)
    whole = final_parameters(config.run_dir, 6)
    shutil.rmtree(Path(config.run_dir) / "checkpoints" / "6")
    train(config)
    jax.tree.map(np.testing.assert_array_equal, final_parameters(config.run_dir, 6), whole)


def test_vectors_of_co_occurrence_are_fitted_and_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_run("sequence", checkpoint, tmp_path, steps=2, evaluation__every=0, evaluation__compare=False)
    train(config)
    run = Run.open(config.run_dir)
    encoded = run.task.encode(list(run.data.examples("train")))
    sequences = [np.append(e.target.history, e.target.items) for e in encoded]
    fitted = item_factors(sequences, ITEMS, config.task.factors)  # type: ignore[attr-defined]
    table = np.asarray(run.model.params["head"]["factors"]["table"])
    # Adam's first steps are as long as the learning rate
    np.testing.assert_allclose(table, fitted, atol=3 * config.optimizer.learning_rate)
    assert fitted.any() and (table != fitted).any()
