"""Several processes share the rows of an input: parts, their index, and what does not fit together."""

from pathlib import Path

import pytest
from letters import ASKED, TEXTS, asker, write_rows

from instructrec_jax.answering import prediction_files
from instructrec_jax.answering.partial_files import Share
from instructrec_jax.answering.prediction_files import Counts, predict_file
from instructrec_jax.files import read_json, read_jsonl


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "WINDOW", 5)


def part(source: Path, out: Path, number: int, count: int = 3, **settings: bool) -> Counts:
    return predict_file(asker(), source, out, asked=ASKED, share=Share(number, count), **settings)


def test_shares_are_all_rows_once_and_equal_in_size() -> None:
    for total, count in ((23, 3), (2, 5), (4096, 1), (7, 7)):
        shares = [Share(number, count).rows(total) for number in range(count)]
        assert [row for share in shares for row in share] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_parts_together_are_the_output_of_one_process(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", [*TEXTS, "x"])
    predict_file(asker(), source, tmp_path / "one.jsonl", asked=ASKED, skip=True)
    out, index = tmp_path / "out.jsonl", tmp_path / "out.jsonl.index.json"
    assert [part(source, out, number, skip=True) for number in (2, 0)] == [Counts(7, 1), Counts(8, 0)]
    assert not index.exists()
    assert part(source, out, 0, skip=True) == Counts(8, 0)  # once more: nothing is lost or overwritten
    assert part(source, out, 1, skip=True) == Counts(8, 0)
    found = read_json(index, dict[str, object])
    parts = found["parts"]
    assert isinstance(parts, list) and (found["rows"], found["rejected"]) == (24, 1)
    assert [(each["file"], each["first_row"], each["rows"]) for each in parts] == [
        (f"out-0000{number + 1}-of-00003.jsonl", 8 * number, 8) for number in range(3)
    ]
    whole = b"".join((tmp_path / each["file"]).read_bytes() for each in parts)
    assert whole == (tmp_path / "one.jsonl").read_bytes()
    assert [each["bytes"] for each in parts] == [(tmp_path / each["file"]).stat().st_size for each in parts]
    assert len(read_jsonl(tmp_path / "out-00003-of-00003.rejected.jsonl")) == 1
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or "lock" in path.name]
    with pytest.raises(ValueError, match=r"out\.jsonl\.index\.json"):
        part(source, out, 1, skip=True)


def test_an_index_that_is_missing_is_written_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill before the last step, or where a network file system shows other parts late."""
    source, out = write_rows(tmp_path / "in.csv", TEXTS), tmp_path / "out.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(prediction_files, "write_index", lambda *_: False)
        for number in range(2):
            part(source, out, number, 2)
    index = tmp_path / "out.parquet.index.json"
    assert not index.exists()
    assert part(source, out, 1, 2) == Counts(12, 0)
    assert index.exists()


def test_a_part_resumes_alone(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", [*TEXTS[:20], "x", *TEXTS[20:]])
    out = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="line 42.*the row has an x.*on_bad_row"):  # two lines a row
        part(source, out, 1, 2)
    assert read_json(tmp_path / "out-00002-of-00002.jsonl.partial.json", dict[str, object])["rows"] == 5
    with pytest.raises(ValueError, match=r"out-00002-of-00002\.jsonl\.partial"):
        part(source, out, 1, 2, skip=True)
    with pytest.raises(ValueError, match="2 processes"):
        part(source, out, 0, 3)


def test_parts_of_different_calls_have_no_index(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.csv", TEXTS), tmp_path / "out.jsonl"
    part(source, out, 0, 2)
    with pytest.raises(ValueError, match=r"out-00002-of-00002\.jsonl"):
        predict_file(asker(), source, out, asked={"run": "another"}, share=Share(1, 2))
    assert not (tmp_path / "out.jsonl.index.json").exists()
