"""Places of records against Python's own readers, with blocks of a few bytes."""

import csv
import io
import json
import random

import numpy as np
import pytest

from instructrec_jax.data import spans
from instructrec_jax.data.spans import NoArray, array_spans, csv_spans, line_spans


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 22])
def test_lines_as_python_reads_them(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(spans, "BLOCK", block)
    for data in (b"", b"\n", b"a", b"a\n", b"a\n\n", b"a\r\n\nbc\n d", b"\xef\xbb\xbfa\nb"):
        start = 3 if data.startswith(b"\xef") else 0
        found = line_spans(io.BytesIO(data), start)
        assert [data[a:b] for a, b, _ in found] == io.BytesIO(data[start:]).readlines()
        assert found[:, 2].tolist() == list(range(1, len(found) + 1)) and found.dtype == np.int64


def test_csv_without_quotes_is_read_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives what the slower reader of quoted files gives."""
    draw = random.Random(1)
    for _ in range(100):
        data = "".join(draw.choice("a,\n\r;") for _ in range(draw.randrange(1, 30))).encode()
        slow = np.fromiter(spans._quoted_spans(io.BytesIO(data), 0), np.dtype((np.int64, 3)))
        assert csv_spans(io.BytesIO(data), 0).tolist() == slow.tolist()
    assert csv_spans(io.BytesIO(b'a\n"b\nc"\nd'), 0)[:, 2].tolist() == [1, 2, 4]
    assert csv.field_size_limit() < 2**31 - 1


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8, 1 << 22])
def test_elements_of_random_arrays(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(spans, "BLOCK", block)
    draw = random.Random(block)

    def value(depth: int) -> object:
        kind = draw.randrange(5 if depth else 3)
        if kind == 3:
            return [value(depth - 1) for _ in range(draw.randrange(3))]
        if kind == 4:
            return {text(): value(depth - 1) for _ in range(draw.randrange(3))}
        return text() if kind else draw.choice([None, True, -1.5e3, 7])

    def text() -> str:
        return "".join(draw.choice('"\\,[]{}\na电') for _ in range(draw.randrange(6)))

    for _ in range(150):
        records = [value(3) for _ in range(draw.randrange(1, 5))]
        written = json.dumps(records, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, 1]))
        before, after = draw.choice(["", " \n", "\n\n\t"]), draw.choice(["", "\n", " \r\n "])
        data = (before + written + after).encode()
        found = array_spans(io.BytesIO(data), 0)
        assert [json.loads(data[a:b]) for a, b, _ in found] == records
        assert [data[:a].count(b"\n") + 1 for a, _, _ in found] == found[:, 2].tolist()
        for cut in (
            len(before + written[:-1].encode().decode()),
            draw.randrange(len(before), len(before + written) - 1),
        ):
            part = (before + written)[:cut].encode()
            if part.strip():
                with pytest.raises(NoArray, match="not closed"):
                    array_spans(io.BytesIO(part), 0)


@pytest.mark.parametrize(
    "data, problem, line",
    [
        (b"\n \n", "blank", 3),
        (b'\n{"a": 1}', "starts with '{", 2),
        (b"[1]\n\n ]", "']' follows", 3),
        (b"[1]]", "follows", 1),
        (b"3", "starts with", 1),
    ],
)
def test_what_is_no_array(data: bytes, problem: str, line: int) -> None:
    with pytest.raises(NoArray, match=problem) as caught:
        array_spans(io.BytesIO(data), 0)
    assert caught.value.line == line
