"""N-grams shared with test files, against sets of tuples."""

import random
from pathlib import Path

import numpy as np
import pytest
from synthesis_texts import random_text

from instructrec_jax.data.example import BadExample
from instructrec_jax.files import write_jsonl
from instructrec_jax.metrics.language import script_words
from instructrec_jax.synthesis.overlap import Overlap, read_overlap


def grams(text: str, length: int) -> set[tuple[str, ...]]:
    words = script_words(text)
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


@pytest.mark.parametrize("length", [1, 3, 5])
def test_as_by_brute_force(length: int, tmp_path: Path) -> None:
    rng = random.Random(length)
    tests, texts = ([random_text(rng)[: rng.randrange(120)] for _ in range(count)] for count in (12, 200))
    texts += [text + other[10:90] for text, other in zip(texts, tests, strict=False)]  # some share a lot
    rows = [{"text": tests[n], "more": {"list": [tests[n + 1]], "n": 3}} for n in range(0, 12, 2)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    overlap = read_overlap([str(tmp_path / "test.jsonl")], length)
    known = set().union(*(grams(text, length) for text in tests))
    assert len(overlap.known) == len(known) and overlap.texts == 12
    assert overlap.short == sum(len(script_words(text)) < length for text in tests)
    found = [overlap.found(text) for text in texts]
    assert found == [bool(grams(text, length) & known) for text in texts]
    assert length == 1 or len(set(found)) == 2


def test_chinese_counts_characters_and_nothing_overlaps_with_no_files(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("question\n三峡大坝在宜昌\n", encoding="utf-8")
    overlap = read_overlap([str(tmp_path / "test.csv")], 4)
    assert overlap.found("他说三峡大坝很大") and not overlap.found("三峡水坝") and not overlap.found("")
    assert not Overlap(4).found("三峡大坝在宜昌") and overlap.known.dtype == np.uint64


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n{"text"\n')
    with pytest.raises(BadExample, match="line 2"):
        read_overlap([str(tmp_path / "test.jsonl")], 4)
    with pytest.raises(ValueError, match="--ngram 0"):
        read_overlap([], 0)
