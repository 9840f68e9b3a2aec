"""Several sources as one stream: by weight, in one order, from any position."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.mixed_stream import MixedStream
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources


def jsonl(path: Path, name: str, count: int, bad: tuple[int, ...] = ()) -> str:
    rows = [{"instruction": " " if n in bad else f"{name}{n}", "output": "x"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mixed(tmp_path: Path, weights: tuple[float, ...] = (3.0, 1.0, 2.0), **more: Any) -> MixedStream:
    configs = [
        SourceConfig(path=jsonl(tmp_path / "a.jsonl", "a", 7), streaming=True, shuffle_block=3, weight=weights[0]),
        SourceConfig(path=jsonl(tmp_path / "b.jsonl", "b", 4), weight=weights[1]),
        SourceConfig(path=jsonl(tmp_path / "c.jsonl", "c", 9, (5,)), streaming=True, weight=weights[2]),
    ]
    stream = open_sources(configs, on_bad_example="skip", **more)
    assert isinstance(stream, MixedStream)
    return stream


def names(stream: MixedStream, count: int) -> list[str]:
    return [e.instruction for e in islice(iter(stream), count)]


def test_shares_hold_at_every_moment(tmp_path: Path) -> None:
    drawn = names(mixed(tmp_path), 240)
    for count in range(1, 241):
        for name, share in zip("abc", (1 / 2, 1 / 6, 1 / 3), strict=True):
            assert abs(sum(each.startswith(name) for each in drawn[:count]) - share * count) < 1.01
    epochs = [each for each in drawn if each.startswith("b")]
    assert sorted(epochs[:4]) == sorted(epochs[4:8]) == ["b0", "b1", "b2", "b3"] and len(set(map(str, epochs))) == 4
    assert "c5" not in drawn and names(mixed(tmp_path), 240) == drawn
    assert names(mixed(tmp_path, seed=1), 240) != drawn


def test_from_every_position(tmp_path: Path) -> None:
    stream = mixed(tmp_path)
    states, walked = [stream.get_state()], []
    for example in islice(iter(stream), 60):
        walked.append(example.instruction)
        states.append(json.loads(json.dumps(stream.get_state())))
    for place in range(0, 60, 7):
        other = mixed(tmp_path)
        other.set_state(states[place])
        assert names(other, 60 - place) == walked[place:]
    with pytest.raises(ValueError, match="sources"):
        mixed(tmp_path).set_state({"drawn": [1], "sources": [None]})


def test_skipped_rows_of_all_sources(tmp_path: Path) -> None:
    stream = mixed(tmp_path)
    names(stream, 60)
    assert [row.where for row in stream.skipped] == [f"{tmp_path / 'c.jsonl'}, line 6"]
    again = mixed(tmp_path)
    again.know_skipped(stream.skipped)
    assert again.skipped == stream.skipped


def test_held_out_and_unusable_examples(tmp_path: Path) -> None:
    def check(example: Example) -> None:
        if example.instruction == "a3":
            raise BadExample("instruction", "too long", "shorten it.")

    stream = mixed(tmp_path)
    stream.use(lambda example: example.instruction not in ("b1", "c2"), check)
    assert not {"a3", "b1", "c2"} & set(names(stream, 120))
    for name in "ab":
        nothing = mixed(tmp_path)
        nothing.use(lambda example, name=name: not example.instruction.startswith(name), check)
        with pytest.raises(ValueError, match="hold_out removes every example"):
            names(nothing, 60)


def test_weights_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weight -1"):
        mixed(tmp_path, (1.0, -1.0, 2.0))
    path = jsonl(tmp_path / "a.jsonl", "a", 3)
    with pytest.raises(ValueError, match="weight"):
        open_sources([SourceConfig(path=path, streaming=True), SourceConfig(path=path)])
