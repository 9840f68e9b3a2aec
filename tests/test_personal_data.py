"""`scripts/personal_data.py`: masking finds what is there in made texts, and little in real ones."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from instructrec_jax.masking.masker import MaskConfig, Masker

PATH = Path(__file__).parents[1] / "scripts" / "personal_data.py"
spec = importlib.util.spec_from_file_location("personal_data", PATH)
script = importlib.util.module_from_spec(spec)
sys.modules["personal_data"] = script  # where its dataclasses look for their module
spec.loader.exec_module(script)


@pytest.fixture(scope="module")
def masker() -> Masker:
    return Masker(MaskConfig(kinds=["all"]))


def test_recall_and_precision_of_made_texts(masker: Masker) -> None:
    found = script.measure(script.make(200, seed=3), masker)
    assert found.counts["all"]["values"] > 250
    assert found.ratio("found", "values") >= 0.99, found.wrong
    assert found.ratio("right", "masks") >= 0.98, found.wrong


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_recall_and_precision_of_all_made_texts(masker: Masker, seed: int) -> None:
    found = script.measure(script.make(script.COUNT, seed), masker)
    assert found.ratio("found", "values") >= 0.99
    assert found.ratio("right", "masks") >= 0.98


def test_the_seed_makes_the_texts_and_spans_hold_values() -> None:
    one, two = list(script.make(40, seed=5)), list(script.make(40, seed=5))
    assert one == two != list(script.make(40, seed=6))
    assert {each.locale for each in one} == set(script.LOCALES)
    assert all(each.text[span.start : span.end].strip() for each in one for span in each.spans)


def test_a_missed_value_and_a_wrong_mask_count(masker: Masker) -> None:
    text = "write to ann@example.com and 10.0.0.1"
    made = [script.Made("en_US", text, (script.Span(0, 5, "email"), script.Span(9, 24, "email")))]
    counts = script.measure(iter(made), masker).counts["all"]
    assert (counts["values"], counts["found"], counts["masks"], counts["right"]) == (2, 1, 2, 1)


@pytest.mark.parametrize("name", ["intent-banking77/test.csv.gz", "finance-phrasebank/sentences_50agree.jsonl.gz"])
def test_real_texts_have_few_false_masks(masker: Masker, name: str) -> None:
    path = Path(os.environ.get("INSTRUCTREC_DATA", "")) / name
    if not os.environ.get("INSTRUCTREC_DATA") or not path.is_file():
        pytest.skip(f"needs {name} under $INSTRUCTREC_DATA")
    words, masked = script.false_masks(script.texts_of(path, "text"), masker)
    assert words > 30_000 and 1000 * len(masked) / words <= 1


def test_files_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\none,x\n")
    (tmp_path / "a.jsonl").write_text('{"text": "two"}\n')
    (tmp_path / "a.txt").write_text("three\nfour\n")
    read = [script.texts_of(tmp_path / f"a.{kind}", "text") for kind in ("csv", "jsonl", "txt")]
    assert read == [["one"], ["two"], ["three", "four"]]
