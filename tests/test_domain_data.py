"""scripts/domain_data.py: each public format, valid and broken; each configuration trains on what it writes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import domain_samples
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from domain_data import READERS, question_of
from public_data import Splits, fewer, main, xquad, xquad_each

from instructrec_jax.data.example import Example
from instructrec_jax.files import read_jsonl
from instructrec_jax.runs.config import load, to_dict
from instructrec_jax.train import train

CONFIGS = Path(__file__).parents[1] / "configs"
SAMPLES: dict[str, Callable[[Path], Path]] = {
    "pubmedqa": domain_samples.pubmedqa,
    "unfair_terms": domain_samples.unfair_terms,
    "unfair_tos": lambda folder: domain_samples.unfair_tos(folder / "unfair_tos.jsonl"),
    "legalbench": domain_samples.legalbench,
    "mmlu": lambda folder: domain_samples.exam_tables(folder, "mmlu"),
    "cmmlu": lambda folder: domain_samples.exam_tables(folder, "cmmlu"),
    "ceval": lambda folder: domain_samples.exam_tables(folder, "ceval"),
    "arc": domain_samples.arc,
    "onestop": domain_samples.onestop,
    "clear": lambda folder: domain_samples.clear(folder / "clear.csv"),
}
SIZES = {  # of train, validation and test
    "pubmedqa": (17, 3, 10),
    "unfair_terms": (105, 15, 30),
    "unfair_tos": (6, 3, 3),
    "legalbench": (10, 2, 16),
    "mmlu": (10, 10, 10),
    "cmmlu": (8, 2, 10),
    "ceval": (8, 2, 10),
    "arc": (10, 10, 10),
    "onestop": (27, 3, 6),
}


def read(name: str, folder: Path, seed: int = 0) -> Splits:
    return READERS[name](SAMPLES[name](folder / name), seed)


@pytest.mark.parametrize("name", SAMPLES)
def test_each_format_is_read_whole(name: str, tmp_path: Path) -> None:
    splits = read(name, tmp_path)
    if name in SIZES:
        assert tuple(len(splits[split]) for split in ("train", "validation", "test")) == SIZES[name]
    examples = [e for split in splits.values() for e in split]
    assert len({e.id for e in examples}) == len(examples)
    for e in examples:
        assert Example.from_record(json.loads(json.dumps(e.to_record()))) == e
        assert e.task and e.origin["language"]
        assert not e.candidates or e.output in e.candidates


def test_what_belongs_together_is_in_one_split(tmp_path: Path) -> None:
    for name, key in (("unfair_terms", "document"), ("onestop", "article")):
        groups = [{e.origin[key] for e in split} for split in read(name, tmp_path, seed=3).values()]
        assert all(groups) and sum(map(len, groups)) == len(set().union(*groups))
    file = domain_samples.clear(tmp_path / "own.csv", kaggle=False)
    authors = [{e.origin["author"] for e in split} for split in READERS["clear"](file, 0).values()]
    assert all(authors) and sum(map(len, authors)) == 12 == len(set().union(*authors))


def test_what_the_examples_say(tmp_path: Path) -> None:
    question = read("pubmedqa", tmp_path)["test"][0]
    assert question.instruction.startswith("Does a long book 0") and question.output == "yes"
    assert question.input == "The old film 0 was dull.\nThe new book was good – α < .05."
    terms = {e.id: e.output for split in read("unfair_terms", tmp_path).values() for e in split}
    assert terms["de-Company_3-1"] == ("limitation of liability",)
    assert terms["de-Company_3-2"] == ("unilateral change", "unilateral termination")
    assert terms["pl-Company_3-3"] == terms["pl-Company_3-4"] == ()  # untagged, and clearly fair
    asked = {e.id: e for split in read("legalbench", tmp_path).values() for e in split}
    assert asked["gossip-test-1"].instruction == 'Gossip is hearsay.\nQ: A "long"\nbook gossip 1 Is it?'
    assert (asked["gossip-test-1"].output, asked["bought-test-1"].output) == ("no", "yes")
    assert asked["bought-test-1"].instruction == 'A "long"\nbook bought 1'
    assert not any(e.origin["subject"] == "colors" for e in asked.values())
    exam = read("cmmlu", tmp_path)["test"][2]
    assert (exam.output, exam.candidates[2], exam.origin["language"]) == ("战争", "战争", "zh")
    assert read("mmlu", tmp_path / "again")["test"][2].output == "war, love"
    assert {e.origin["subject"] for e in read("arc", tmp_path)["test"]} == {"ARC-Easy", "ARC-Challenge"}
    middle = [e for split in read("onestop", tmp_path).values() for e in split if e.output == "intermediate"]
    assert all(e.instruction.startswith("The old book") for e in middle)
    eases = read("clear", tmp_path)
    assert {e.id for e in eases["test"]} == {str(n) for n in range(0, 36, 4)} and eases["test"][0].output == -1.5


def test_prompts_without_solved_examples() -> None:
    assert question_of("Q: a?\nA: Yes\n\nQ: {{text}}?\nA:") == "Q: {{text}}?"
    assert question_of("A rule.\n\nQ: a?\nA: Yes\n\nQ: {{text}}?\nA:") == "A rule.\nQ: {{text}}?"
    assert question_of("{{text}}") == "{{text}}"


def test_arc_of_the_hub(tmp_path: Path) -> None:
    released = domain_samples.arc(tmp_path / "released")
    for file in released.rglob("*.jsonl"):
        split = {"Train": "train", "Dev": "validation", "Test": "test"}[file.stem.split("-")[-1]]
        rows = []
        for row in read_jsonl(file):
            question: Any = row["question"]
            choices = {key: [choice[key] for choice in question["choices"]] for key in ("text", "label")}
            rows.append({**row, "question": question["stem"], "choices": choices})
        target = tmp_path / "hub" / file.parent.name / f"{split}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), target)
    assert READERS["arc"](tmp_path / "hub", 0) == READERS["arc"](released, 0)


def change(name: str, file: str, old: str, new: str) -> Callable[[Path], Path]:
    def sample(folder: Path) -> Path:
        source = SAMPLES[name](folder)
        path = source if source.is_file() else next(path for path in sorted(source.rglob(file)))
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_bytes(text.replace(old, new, 1).encode("gb18030" if new == "编" else "utf-8"))
        return source

    return sample


@pytest.mark.parametrize(
    ("name", "sample", "message"),
    [
        ("pubmedqa", change("pubmedqa", "ori*", '"yes"', '"yep"'), "question 1000: unknown label 'yep'"),
        ("pubmedqa", change("pubmedqa", "ori*", '"CONTEXTS"', '"TEXTS"'), "question 1000 has no 'CONTEXTS'; it has Q"),
        ("pubmedqa", change("pubmedqa", "test_*", '"1000"', '"77"'), "lacks 1 of the test questions, such as 77"),
        ("pubmedqa", change("pubmedqa", "test_*", '"yes"', '"no"'), "question 1000: 'yes' in ori_pqal.json, 'no' in"),
        ("pubmedqa", change("pubmedqa", "ori*", "{", "["), "JSONDecodeError"),
        (
            "unfair_terms",
            change("unfair_terms", "tags/*/*/*", "ltd2", "ltd7"),
            "Company_0.txt, line 1: unknown tag 'ltd7'",
        ),
        ("unfair_terms", change("unfair_terms", "tags/*/*/*", "ltd2\n", ""), "5 sentences, but 4 lines of tags"),
        (
            "unfair_tos",
            change("unfair_tos", "", '["Limitation of liability"]', '"Limitation"'),
            "line 1: 'labels' is 'Lim",
        ),
        ("unfair_tos", change("unfair_tos", "", '"We are not liable 0."', "7"), "line 1: 'text' is 7, expected a text"),
        ("unfair_tos", change("unfair_tos", "", "}\n", "\n"), "unfair_tos.jsonl, line 1"),
        ("unfair_tos", change("unfair_tos", "", '"data_type"', '"split"'), "line 1 has no 'data_type'"),
        (
            "legalbench",
            change("legalbench", "base*", "{{text}}", "{{fact}}"),
            "row 1 has no 'fact'; it has index, text",
        ),
        (
            "legalbench",
            change("legalbench", "bought/train.tsv", "answer", "said"),
            "bought/train.tsv, row 1 has no 'label'",
        ),
        ("mmlu", change("mmlu", "dev/*", "space,A", "space,E"), "history_dev.csv|biology_dev.csv"),
        (
            "mmlu",
            change("mmlu", "dev/*", ",space", ""),
            "has 5 columns, expected 6 with question, A, B, C, D and answer",
        ),
        ("cmmlu", change("cmmlu", "dev/*", ",C,D", ",C,E"), "biology.csv has no column 'd'"),
        ("cmmlu", change("cmmlu", "dev/*", "爱", "编"), "biology.csv is not UTF-8 .* iconv -f GB18030"),
        (
            "arc",
            change("arc", "ARC-Easy-Dev*", '"answerKey": "A"', '"answerKey": "Z"'),
            "Dev.jsonl, line 1: unknown label 'Z'",
        ),
        (
            "arc",
            change("arc", "ARC-Easy-Dev*", '"choices": [', '"choices": {"text": ["a"]}, "others": ['),
            "Dev.jsonl, line 1 has no 'label'; it has text",
        ),
        (
            "arc",
            change("arc", "ARC-Easy-Dev*", '"choices": [', '"choices": {"text": ["a"], "label": ["A", "B"]}, "x": ['),
            "Dev.jsonl, line 1: 'choices' should be a list of texts with labels",
        ),
        (
            "arc",
            change("arc", "ARC-Easy-Dev*", '"choices": [', '"choices": 3, "others": ['),
            "Dev.jsonl, line 1: 'choices' should be a list",
        ),
        ("arc", change("arc", "ARC-Easy-Dev*", '"label": "A"', '"label": ["A"]'), "line 1: 'label' is .'A'., expected"),
        ("arc", change("arc", "ARC-Easy-Dev*", "{", "3\n{"), "Dev.jsonl, line 1: expected an object, found int"),
        (
            "onestop",
            change("onestop", "*-int.txt", "The old book 0.\n\nIt is long.\n", ""),
            "Int-Txt/WNL Book 0-int.txt is empty",
        ),
        ("clear", change("clear", "", "-1.5", "nan"), "row 1: the ease is 'nan', expected a number"),
        ("clear", change("clear", "", "BT Easiness", "Ease"), "row 1 has no 'bt easiness'; it has id, author"),
        ("clear", change("clear", "", "Train", "Maybe"), "excerpt 1: unknown label 'maybe'"),
        ("clear", lambda folder: folder / "nowhere.csv", "FileNotFoundError"),
        ("mmlu", lambda folder: folder, "expected one folder with dev/ and test/, found 0"),
        ("legalbench", lambda folder: folder, "found no folder with train.tsv and test.tsv"),
    ],
)
def test_what_is_broken_is_named(
    name: str, sample: Callable[[Path], Path], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sample(tmp_path / "raw")
    monkeypatch.setattr(sys, "argv", ["domain_data.py", name, "--source", str(source), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=message):
        main(READERS)
    assert not (tmp_path / "out").exists()


def test_a_question_without_its_answer_is_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = change("mmlu", "dev/biology*", "a film", "")(tmp_path)
    assert len(READERS["mmlu"](source, 0)["train"]) == 9
    assert "left out: biology_dev.csv, question 1" in capsys.readouterr().err


def test_other_labels_than_those_of_lexglue_are_left_out_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = change("unfair_tos", "", "Limitation of liability", "Other")(tmp_path)
    assert READERS["unfair_tos"](source, 0)["train"][0].output == ()
    assert "left out labels: other (1)" in capsys.readouterr().err


def test_what_macos_adds_to_archives_is_no_data(tmp_path: Path) -> None:
    for name in ("unfair_terms", "ceval", "onestop", "legalbench"):
        plain, packed = SAMPLES[name](tmp_path / name), tmp_path / f"packed-{name}"
        SAMPLES[name](packed)
        SAMPLES[name](packed / "__MACOSX")
        assert READERS[name](packed, 0) == READERS[name](plain, 0)


def test_at_most_so_many_cases_of_each_subject(tmp_path: Path) -> None:
    test = read("mmlu", tmp_path)["test"]
    few = fewer(test, 2, 0)
    assert [e.origin["subject"] for e in few] == ["biology"] * 2 + ["history"] * 2
    assert few == fewer(test, 2, 0) and [e for e in test if e in few] == few and fewer(test, 99, 0) == test


def test_xquad_in_each_language(tmp_path: Path) -> None:
    for language in ("en", "zh"):
        question = {"answers": [{"text": "书", "answer_start": 0}], "question": "什么？", "id": "1"}
        articles = [{"paragraphs": [{"context": "书好。", "qas": [question]}]}] * 10
        (tmp_path / f"xquad.{language}.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    each, english = xquad_each(tmp_path, 0), xquad(tmp_path, 0)
    assert [len(each[name]) for name in ("train", "validation", "test")] == [14, 2, 4]
    assert english["test"] == each["test"]
    assert english["train"] == [e for e in each["train"] if e.origin["language"] == "en"]


OF_CONFIG = {
    "medical": ["pubmedqa"],
    "law": ["unfair_terms"],
    "legalbench": ["legalbench"],
    "education": ["arc", "mmlu", "cmmlu", "ceval"],
    "readability": ["onestop"],
}


@pytest.mark.parametrize("name", OF_CONFIG)
def test_a_configuration_goes_from_the_raw_files_to_the_table(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for data in OF_CONFIG[name]:
        source = SAMPLES[data](tmp_path / "raw" / data)
        monkeypatch.setattr(sys, "argv", ["x", data, "--source", str(source), "--out", f"data/{data}", "--most", "4"])
        main(READERS)
    settings = to_dict(load(CONFIGS / f"{name}.yaml"))
    rows = "data.batch_rows" if settings["data"]["batch_rows"] else "data.batch_size"  # type: ignore[index]
    smaller = {"steps": 2, "evaluation.every": 2, "checkpoint.every": 2, rows: 8, "data.max_length": 32}
    own = {"backbone.path": str(checkpoint), "backbone.dtype": "float32", "tracking.tensorboard": False}
    run = train(load(settings | smaller | own))
    measured: Any = json.loads((run / "evaluation.json").read_text())
    names = [row["name"] for row in measured["rows"]]
    assert names[:2] == ["before tuning", "after tuning"] and len(names) > 2
    if name in ("medical", "legalbench", "readability"):
        assert names[2:] == ["most frequent label", "TF-IDF + logistic regression"]
    if name in ("law", "education"):  # by language
        wanted = {"law": ", pl", "education": ", zh"}[name]
        assert any(metric.endswith(wanted) for metric in measured["all_metrics"])
