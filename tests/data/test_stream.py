"""Streams: the same examples from every saved position, a shuffle within blocks, bad rows as they are met."""

import json
import logging
from pathlib import Path

import datasets
import pytest

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.mixed_stream import list_skipped, resume_skipped
from instructrec_jax.data.skipped import SkippedRow, read_skipped
from instructrec_jax.data.sources import StreamSource


def stream_of(count=23, block=5, shards=3, bad=(), **settings):
    rows = [{"instruction": "" if n in bad else f"{n}", "output": "x"} for n in range(count)]
    dataset = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)
    return StreamSource(dataset, FieldMapper(FieldsConfig()), "s", shuffle_block=block, **settings)


def numbers(examples):
    return [int(e.instruction) for e in examples]


def test_a_stream_shuffles_within_blocks_and_by_epoch():
    stream = stream_of()
    epochs = [numbers(stream) for _ in range(3)]
    for epoch in epochs:
        for start in range(0, 23, 5):
            assert sorted(epoch[start : start + 5]) == list(range(start, min(start + 5, 23)))
    assert epochs[0] != epochs[1] != epochs[2]
    assert [numbers(stream_of())] == epochs[:1] and numbers(stream_of(seed=1)) != epochs[0]
    assert numbers(stream_of(block=1)) == list(range(23))


@pytest.mark.parametrize("count, block", [(23, 5), (20, 5), (7, 100), (9, 1)])
def test_a_stream_resumes_after_any_example(count, block):
    stream, walked, states = stream_of(count, block), [], []
    states.append(stream.get_state())
    for _ in range(2):
        for example in stream:
            walked.append(example)
            states.append(json.loads(json.dumps(stream.get_state())))
    assert len(walked) == 2 * count
    for place, state in enumerate(states):
        other = stream_of(count, block)
        other.set_state(state)
        rest = [e for _ in range(3) for e in other][: len(walked) - place]
        assert rest == walked[place:]


def test_a_stream_goes_back():
    stream = stream_of()
    first = numbers(stream)
    stream.set_state(None)  # between epochs: nothing to undo
    second = numbers(stream)
    assert first != second
    rows = iter(stream)
    third = [int(next(rows).instruction) for _ in range(8)]
    stream.set_state(None)
    assert numbers(stream)[:8] == third


def test_bad_rows_of_a_stream():
    with pytest.raises(ValueError, match="s, row 7, field 'instruction': empty text"):
        list(stream_of(bad=[7]))
    stream = stream_of(bad=[7, 11], on_bad_example="skip")
    assert sorted(numbers(stream)) == [n for n in range(23) if n not in (7, 11)]
    state = stream.get_state()
    list(stream)
    assert [row.where for row in sorted(stream.skipped, key=lambda r: len(r.where))] == [
        "s, row 7",
        "s, row 11",
    ]
    other = stream_of(bad=[7, 11], on_bad_example="skip")
    other.set_state(state)
    assert "skipped" not in state and other.skipped == []  # skipped.jsonl has them, not each checkpoint
    other.know_skipped(stream.skipped)
    assert other.skipped == stream.skipped
    with pytest.raises(ValueError, match="source"):
        list(stream_of(4, bad=range(4), on_bad_example="skip"))


def test_a_stream_refuses_another_shuffle():
    state = stream_of().get_state()
    with pytest.raises(ValueError, match="shuffle_block"):
        stream_of(seed=1).set_state(state)
    with pytest.raises(ValueError, match="shuffle_block 0"):
        stream_of(block=0)


def test_the_check_of_a_task_makes_bad_rows_too() -> None:
    def check(example: Example) -> None:
        if example.instruction == "7":
            raise BadExample("instruction", "too long", "shorten it.")

    stream = stream_of(on_bad_example="skip")
    stream.use(lambda example: True, check)
    assert sorted(numbers(stream)) == [n for n in range(23) if n != 7]
    assert stream.skipped == [SkippedRow("s, row 7", "instruction", "too long", "shorten it.")]


def test_rows_are_skipped_once_however_often_they_are_read() -> None:
    stream = stream_of(bad=[2], on_bad_example="skip")
    for _ in range(3):
        list(stream)
    assert len(stream.skipped) == 1


def test_unread_fields_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"instruction": f"{n}", "output": "x", "url": "u", "day": None if n < 3 else 1} for n in range(6)]
    dataset = datasets.Dataset.from_list(rows).to_iterable_dataset()
    with caplog.at_level(logging.WARNING):
        list(StreamSource(dataset, FieldMapper(FieldsConfig()), "s", shuffle_block=1))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "url" in told[0] and "day" in told[1]


def test_the_list_of_skipped_rows_grows_and_is_resumed(tmp_path: Path) -> None:
    stream = stream_of(bad=[7, 11, 13], on_bad_example="skip")
    assert resume_skipped(stream, tmp_path, resumes=False) == 0 and not (tmp_path / "skipped.jsonl").exists()
    listed = 0
    for _ in stream:
        listed = list_skipped(stream, tmp_path, listed)
    assert listed == 3 and read_skipped(tmp_path) == stream.skipped

    resumed = stream_of(bad=[7, 11, 13], on_bad_example="skip")
    assert resume_skipped(resumed, tmp_path, resumes=True) == 3 and resumed.skipped == stream.skipped
    list(resumed)
    assert list_skipped(resumed, tmp_path, 3) == 3 and len(read_skipped(tmp_path)) == 3  # the same rows, once

    assert resume_skipped(stream, tmp_path, resumes=False) == 0 and read_skipped(tmp_path) == []
    assert resume_skipped([], tmp_path, resumes=True) == 0 and list_skipped([], tmp_path, 5) == 5  # no stream
