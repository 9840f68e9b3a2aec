"""Examples that a store encodes equal those of one `encode`, for every task (`instructrec_jax.tasks.encoded`)."""

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import examples, task_config
from processes import as_processes
from task_cases import drawn, paired, sounding

from instructrec_jax.data.batch import lengths_of, of_texts
from instructrec_jax.data.codec import pack
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.data.sources import ListSource
from instructrec_jax.data.storage import Storage
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import open_task
from instructrec_jax.tasks import prediction
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.encoded_store import EncodedExamples, encode_again, encode_stored, joined, of_task, token_key
from instructrec_jax.tasks.encoding import encode_usable
from instructrec_jax.tasks.task_config import TaskConfig

NETWORKS = {"language_model": "llama", "choice": "llama", "dialogue": "llama", "question_answering": "llama"}
NETWORKS |= {"summarization": "t5", "translation": "llama", "language_model_ranking": "llama"}
NETWORKS |= {"preference": "llama", "contrastive": "clip pair", "transcription": "whisper"}
NETWORKS |= {"image_tokenization": "fsq", "text_to_image": "draw llama", "generative": "codes llama"}


def a_task(kind: str, folders: dict[str, Path], tmp_path: Path, **settings: Any) -> Task:
    folder = folders[NETWORKS.get(kind, "bert")]
    config = task_config(kind, tmp_path / "catalogue", **settings)
    return open_task(Config(task=config, data=DataConfig(max_length=64)), folder)


@pytest.fixture
def folders(
    checkpoint: Path,
    language_models: dict[str, Path],
    pair_networks: dict[str, Path],
    hearing: Path,
    drawing: dict[str, Path],
    coded: dict[str, Path],
) -> dict[str, Path]:
    return {"bert": checkpoint, **language_models, **pair_networks, "whisper": hearing, **drawing, **coded}


def kinds() -> list[str]:
    known = TaskConfig.get_known_choices()
    return sorted(n for n, config in known.items() if config.__module__.startswith("instructrec_jax."))


def a_source(kind: str, count: int = 11) -> ListSource:
    made = examples(kind, count)
    if kind == "contrastive":
        made = paired(made, labels=False)
    if kind in ("image_tokenization", "text_to_image"):
        made = [drawn(e, n, kind) for n, e in enumerate(made)]
    if kind == "transcription":
        made = [sounding(e, n, 1) for n, e in enumerate(made)]
    return ListSource([replace(e, where=f"f, line {n}", id=f"e{n}") for n, e in enumerate(made)], "f")


def stored(task: Task, source: Any, folder: Path | None, workers: int = 1, **more: Any) -> EncodedExamples:
    numbers = more.pop("numbers", np.arange(len(source)))
    storage = Storage(None if folder is None else str(folder), workers, more.pop("divided", False))
    key = more.pop("key", "a key")
    return encode_stored(task, source, numbers, "error", folder=folder, key=key, storage=storage, **more)


def assert_equal(found: Any, expected: list[Encoded]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.example == other.example and one.example.where == other.example.where
        assert pack((replace(one.text, images=None), one.target)) == pack(
            (replace(other.text, images=None), other.target)
        )
        assert (one.text.images is None) == (other.text.images is None)
        if one.text.images is not None and other.text.images is not None:
            assert list(one.text.images.pictures) == list(other.text.images.pictures)
            assert one.text.images.places.tolist() == other.text.images.places.tolist()
    shared = [
        [a.example is b.example for a, b in zip(each, each[1:], strict=False)] for each in (list(found), expected)
    ]
    assert shared[0] == shared[1], "windows of one example have it as one object"


@pytest.mark.parametrize("kind", kinds())
def test_every_task(kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, written and read again, by a task that traveled to another process: as one call."""
    monkeypatch.setattr("instructrec_jax.tasks.encoded_store.PART_ROWS", 4)
    task, source = a_task(kind, folders, tmp_path), a_source(kind)
    task.context.counts.clear()  # of what was cut when the task was built
    expected = encode_usable(task, list(source), "error")[0]
    counts = dict(task.context.counts)
    task.context.counts.clear()
    traveled = pickle.loads(pickle.dumps(task))
    for each in (task, traveled, task):
        found = stored(each, source, tmp_path / "store")
        assert_equal(found, expected)
        assert {what: n for what, n in each.context.counts.items() if n} == {w: n for w, n in counts.items() if n}
        each.context.counts.clear()
    assert_equal(stored(task, source, None), expected)
    lengths = [len(e.text.tokens) for e in expected]
    assert found.lengths.tolist() == lengths
    targets = [len(e.text.target) for e in expected if e.text.target is not None]
    assert (found.target_lengths is None) if not targets else (np.array_equal(targets, found.target_lengths))  # type: ignore[arg-type]
    assert_equal(found.chosen(np.array([2, 0])), [expected[2], expected[0]])
    assert_equal(found[1:3], expected[1:3])


@pytest.mark.parametrize("kind", kinds())
def test_every_task_on_hosts_without_a_shared_disk(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps its parts only, knows the lengths of all, and makes the rest again where it is read."""
    monkeypatch.setattr("instructrec_jax.tasks.encoded_store.PART_ROWS", 3)
    task, source = a_task(kind, folders, tmp_path), a_source(kind)
    task.context.counts.clear()
    whole = stored(task, source, None)
    expected = list(whole)
    tasks = [pickle.loads(pickle.dumps(task)) for _ in range(2)]
    for each in tasks:
        each.context.counts.clear()
    found = as_processes(
        monkeypatch, 2, lambda n: stored(tasks[n], source, tmp_path / f"store{n}", divided=True, workers=1)
    )
    for number, each in enumerate(found):
        written = sorted(path.name for path in (tmp_path / f"store{number}").rglob("part-*"))
        if task.divides:
            assert written == [f"part-0000{n}.arrow" for n in (number, number + 2)]
            each = pickle.loads(pickle.dumps(each))
        assert each.lengths.tolist() == whole.lengths.tolist() and each.fingerprint == whole.fingerprint
        assert tasks[number].context.counts == {w: n for w, n in task.context.counts.items() if n}
        for row in (len(each) - 1, 0, 4):
            assert_equal(each[row : row + 1], expected[row : row + 1])
            assert pack(each[row].target) == pack(expected[row].target)
        assert_equal(each, expected)


@pytest.mark.parametrize("kind", kinds())
def test_what_is_gathered_alone_is_that_of_the_batch(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    task = a_task(kind, folders, tmp_path)
    encoded = task.encode(list(a_source(kind)))
    if not task.gathers_alone:
        return
    some = np.array([7, 2, 3])
    whole = task.gather(encoded, np.random.default_rng(0))
    part = task.gather([encoded[n] for n in some], np.random.default_rng(1))
    lengths, targets = lengths_of(whole.texts)
    expected = of_texts(whole.own, lengths if targets is None else targets, some)
    jax.tree.map(np.testing.assert_array_equal, part.own, expected)
    assert len(whole.texts) == len(encoded) and [t.tokens.tolist() for t in part.texts] == [
        whole.texts[n].tokens.tolist() for n in some
    ]


def test_workers(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_jax.tasks.encoded_store.PART_ROWS", 3)
    task, source = a_task("language_model", folders, tmp_path), a_source("language_model")
    assert_equal(stored(task, source, tmp_path / "store", workers=2), encode_usable(task, list(source), "error")[0])


def test_some_of_several_sources(folders: dict[str, Path], tmp_path: Path) -> None:
    task, source = a_task("classification", folders, tmp_path), a_source("classification")
    other = ListSource([replace(e, task="b") for e in source], "b")
    numbers = np.array([1, 4, 9])
    parts = [stored(task, source, None, numbers=numbers), stored(task, other, None)]
    both = joined(parts)
    expected = [e for part in parts for e in part]
    assert len(expected) == 14
    assert_equal(both, expected)
    assert [e.example.id for e in both[:3]] == ["e1", "e4", "e9"]
    assert_equal(of_task(both, "b"), expected[3:])
    assert_equal(of_task(both.chosen(np.arange(2, 6)), "b"), expected[3:6])
    assert_equal(of_task(list(both), "b"), expected[3:])
    with pytest.raises(IndexError):
        both[14]
    assert both[-1].example == expected[-1].example


def test_unusable_examples_are_named_or_skipped(folders: dict[str, Path], tmp_path: Path) -> None:
    task = a_task("language_model", folders, tmp_path)
    unusable = Example(instruction="a", where="f, line 3")
    source = ListSource([*a_source("language_model", 2), unusable], "f")
    for folder in (None, tmp_path / "store"):
        with pytest.raises(BadExample, match="f, line 3"):
            stored(task, source, folder)
        for _ in range(2):
            found = encode_stored(
                task, source, np.arange(3), "skip", folder=folder, key=1, storage=Storage(str(folder))
            )
            assert len(found) == 2
            assert [row.where for row in found.skipped] == ["f, line 3"]
            assert isinstance(found.skipped[0], SkippedRow)
        with pytest.raises(ValueError, match="none of 1 examples is usable"):
            encode_stored(task, source, np.array([2]), "skip", folder=folder, key=2, storage=Storage(str(folder)))


def test_what_makes_tokens_stale(folders: dict[str, Path], tmp_path: Path) -> None:
    def key(task: Task, settings: object = None, examples: str = "f", numbers: Any = (0, 1)) -> object:
        return token_key(task, settings, examples, np.array(numbers), "error")

    task = a_task("language_model", folders, tmp_path)
    same = a_task("language_model", folders, tmp_path)
    assert key(task) == key(same)
    others = [key(task, {"template": "chatml"}), key(task, examples="g"), key(task, numbers=(0, 2))]
    longer = a_task("language_model", folders, tmp_path)
    longer.context.max_length = 65
    others.append(key(longer))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folders["llama"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert key(a_task("language_model", {"llama": copy}, tmp_path)) == key(task), "the folder's name does not matter"
    tokenizer = (copy / "tokenizer_config.json").read_text()
    (copy / "tokenizer_config.json").write_text(tokenizer.replace("{", '{"chat_template": "x", ', 1))
    others.append(key(a_task("language_model", {"llama": copy}, tmp_path)))
    assert all(each != key(task) for each in others)
    (copy / "tokenizer_config.json").write_text(tokenizer)
    (copy / "README.md").write_text("other weights, same tokenizer")
    assert key(a_task("language_model", {"llama": copy}, tmp_path)) == key(task)
    seeded = a_task("language_model", folders, tmp_path)
    seeded.context.seed = 9
    assert key(seeded) == key(task), "no seed where examples are encoded alone"
    drawn = [a_task("similarity", folders, tmp_path, labels=[], negatives=2) for _ in range(2)]
    drawn[1].context.seed = 9
    assert key(drawn[0]) != key(drawn[1])


# ------------------------------------------------------------------ evaluated

OUTPUTS = {"classification": 5, "multilabel": 5, "regression": 1, "token_classification": 2, "span": 2}


@pytest.mark.parametrize("kind", [*OUTPUTS, "language_model"])
def test_scores_of_a_store_are_those_of_a_list(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In windows of four encodings: every example of the store is a new object each time that it is read."""
    asked: list[int] = []

    def run(texts: Any, own: Any = None, dropout: Any = None) -> list[np.ndarray]:
        asked.append(len(texts))
        size = OUTPUTS.get(kind, 2)
        drawn = [np.random.default_rng(t.tokens.tolist()) for t in texts]
        shapes = [(len(t.tokens), size) if task.per_token else (size,) for t in texts]
        return [rng.random(shape, np.float32) for rng, shape in zip(drawn, shapes, strict=True)]

    task = a_task(kind, folders, tmp_path)
    cases = stored(task, a_source(kind), None)
    monkeypatch.setattr(prediction, "WINDOW", 4)
    found, expected = (task.score(prediction.Predict(run), some) for some in (cases, list(cases)))
    assert max(asked) == 4 and sum(asked) == 2 * len(cases)
    assert found.metrics == expected.metrics and found.report == expected.report
    assert list(found.predictions) == list(expected.predictions) and len(found.predictions) == 11
    for name, values in expected.cases.items():
        np.testing.assert_array_equal(found.cases[name], values)
    assert {name: owners.tolist() for name, owners in found.owners.items()} == {
        name: owners.tolist() for name, owners in expected.owners.items()
    }
    assert task.drawn(cases) and [e.example for e in task.drawn(cases)] == [e.example for e in task.drawn(list(cases))]


def test_cases_encoded_again_are_those_of_one_call(folders: dict[str, Path], tmp_path: Path) -> None:
    """By another task, and with other words; none of their examples is held."""
    first, second = (a_task(kind, folders, tmp_path) for kind in ("masked_lm", "classification"))
    cases = stored(first, a_source("classification"), tmp_path)
    assert_equal(encode_again(second, cases), second.encode([e.example for e in cases]))
    change = partial(replace, instruction="film")
    again = encode_again(second, cases, change)
    assert_equal(again, second.encode([change(e.example) for e in cases]))
    assert again[3].example == change(cases[3].example)
