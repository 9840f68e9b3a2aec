"""The verb `synthesize`, and `scripts/synthesizer_data.py`."""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from synthesis_texts import RIVER, TOWN

from instructrec_jax import synthesize as module
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.config import ConfigError
from instructrec_jax.synthesis.model_pairs import ASK, read_pairs
from instructrec_jax.synthesize import main

ROWS = [{"text": TOWN, "title": "The university town of Freiburg", "id": "town"}, {"text": RIVER, "id": "river"}]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "texts.jsonl", ROWS)
    return tmp_path


def test_pairs_by_rules(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["texts.jsonl", "--with", "rules", "--out", "out.jsonl", "--show", "2"])
    said = capsys.readouterr()
    rows = read_jsonl(texts / "out.jsonl")
    assert f"2 records, 2 passages, {len(rows)} examples written" in said.err and "written: out.jsonl" in said.err
    assert said.out.count("\n=> ") == 2 and said.out.startswith("[title] ")
    main(["texts.jsonl", "--with", "rules", "--out", "again.jsonl"])
    assert (texts / "again.jsonl").read_bytes() == (texts / "out.jsonl").read_bytes()
    main(["texts.jsonl", "--with", "rules", "--out", "other.jsonl", "--seed", "1"])
    assert (texts / "other.jsonl").read_bytes() != (texts / "out.jsonl").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        main(["texts.jsonl", "--with", "rules", "--out", "out.jsonl"])


def test_documents_and_test_files(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (texts / "test.csv").write_text(f'question,n\n"{TOWN[:150]}",1\nshort,2\n')
    options = ["--form", "documents", "--chain", "2", "--share", "100%", "--show", "1"]
    main(["texts.jsonl", "--with", "rules", "--out", "out.jsonl", *options, "--test", "test.csv"])
    said = capsys.readouterr()
    (row,) = read_jsonl(texts / "out.jsonl")
    assert row["messages"][0]["content"].startswith(RIVER) and RIVER in said.out  # type: ignore[index]
    assert "1 passages removed, which share an n-gram with a test file" in said.err
    assert "13-grams; 3 are shorter, so they are not found" in said.err


def test_columns_and_passages(texts: Path) -> None:
    write_jsonl(texts / "other.jsonl", [{"body": TOWN, "name": "The university of Freiburg"}])
    options = ["--text_field", "body", "--title_field", "name", "--passage", "40"]
    main(["other.jsonl", "--with", "rules", "--out", "out.jsonl", *options])
    rows = read_jsonl(texts / "out.jsonl")
    assert len({row["input"] for row in rows if "input" in row}) > 1
    assert [row["output"] for row in rows if row["origin"]["rule"] == "title"] == ["The university of Freiburg"]  # type: ignore[index]


def test_a_network_that_knows_nothing_leaves_no_pair(texts: Path, language_models: dict[str, Path]) -> None:
    write_jsonl(
        texts / "short.jsonl", [{"text": "It is a film of the war, and it was a book for the old and the new."}]
    )
    with pytest.raises(
        ValueError, match=r"no pair is left(.|\n)*pairs dropped: (no question|the last line was cut off)"
    ):
        main(["short.jsonl", "--with", str(language_models["llama"]), "--out", "out.jsonl"])
    assert not (texts / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.csv"], "JSON lines are written, so name a file FILE.jsonl"),
        (["--out", "a.jsonl", "--share", "0.5"], "--share is for --form documents"),
        (["--out", "a.jsonl", "--chain", "2"], "--chain is for --form documents"),
        (["--out", "a.jsonl", "--form", "documents", "--share", "2"], "--share 2.0: give the share"),
        (["--out", "a.jsonl", "--ngram", "5"], "name these, too"),
        (["--out", "a.jsonl", "--test", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--out", "a.jsonl", "--with", "nowhere"], "nowhere"),
        (["--out", "a.jsonl", "--passage", "3"], "--passage should be at least 20"),
    ],
)
def test_what_cannot_be(options: list[str], message: str, texts: Path) -> None:
    with pytest.raises(ValueError, match=message):
        main(["texts.jsonl", *([] if "--with" in options else ["--with", "rules"]), *options])
    assert not list(texts.glob("*a.*"))


def test_a_misspelled_option_and_an_unreadable_file_are_named(texts: Path) -> None:
    with pytest.raises(ConfigError, match="there is no option 'chian'. Did you mean 'chain'"):
        main(["texts.jsonl", "--with", "rules", "--out", "a.jsonl", "--chian", "2"])
    (texts / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl: it is empty"):
        main(["empty.jsonl", "--with", "rules", "--out", "a.jsonl"])
    with pytest.raises(ValueError, match="unknown format .pdf"):
        (texts / "a.pdf").write_text("x")
        main(["a.pdf", "--with", "rules", "--out", "b.jsonl"])


def test_a_crash_leaves_no_file(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "by_rules", lambda seed: stop)
    with pytest.raises(KeyboardInterrupt):
        main(["texts.jsonl", "--with", "rules", "--out", "out.jsonl"])
    assert [path.name for path in texts.iterdir()] == ["texts.jsonl"]


# ---------------------------------------------------------------- scripts/synthesizer_data.py

PATH = Path(__file__).parents[1] / "scripts" / "synthesizer_data.py"
spec = importlib.util.spec_from_file_location("synthesizer_data", PATH)
assert spec is not None and spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_training_data_of_a_synthesizer(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        {"question": "When was it founded?", "answers": [{"text": "1457", "answer_start": 0}]},
        {"question": "Where is Cologne?", "answers": [{"text": "on the Rhine"}]},
        {"question": "Who?", "answers": []},
    ]
    squad = {"data": [{"paragraphs": [{"context": TOWN, "qas": asked}]}]}
    with gzip.open(texts / "squad.json.gz", "wt", encoding="utf-8") as file:
        json.dump(squad, file)
    rows: list[dict[str, Any]] = [{"context": RIVER, "question": "大桥何时建成？", "answers": {"text": ["1957年"]}}]
    write_jsonl(texts / "qa.jsonl", rows + [{"context": TOWN, "question": "From where?", "answer": "France"}] * 2)
    write_jsonl(texts / "short.jsonl", [{"source": TOWN.split(" It "), "target": ["A town with a library of maps"]}])
    script.main(["squad.json.gz", "qa.jsonl", "short.jsonl", "--out", "out.jsonl", "--pairs", "2"])
    town, river, short = read_jsonl(texts / "out.jsonl")
    assert town["instruction"] == ASK["en"] and town["input"] == TOWN
    assert town["output"] == "When was it founded?\t1457\nFrom where?\tFrance"
    assert river["instruction"] == ASK["zh"] and read_pairs(str(river["output"]))[0][0].answer == "1957年"
    assert short["output"] == "Summarize the text.\tA town with a library of maps"
    said = capsys.readouterr().out
    assert "3 examples" in said and "1 left out: the answer does not stand in the text" in said
    assert "left out: beyond --pairs" in said
