"""`prepare inspect`: files of many forms become configurations with disjoint splits whose rows all encode."""

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.files import read_jsonl
from instructrec_jax.preparation.inspection.inspect import inspect
from instructrec_jax.preparation.inspection.sizing import RATES
from instructrec_jax.preparation.inspection.splitting import SPLITS
from instructrec_jax.preparation.own_config import InspectConfig
from instructrec_jax.prepare import main
from instructrec_jax.runs.config import Config, load
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import backbone_folder, open_task
from instructrec_jax.train import train
from instructrec_jax.training.optimizer import DEFAULT_RATES

Row = Mapping[str, object]
THINGS = "war space crime music love".split()


@dataclass(frozen=True)
class Form:
    """A file and what should be found in it. own: columns of the input."""

    file: str
    row: Callable[[int, random.Random], Row]
    task: str
    fields: Mapping[str, object]
    own: Sequence[str] = ("text",)
    writer: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)
    rows: int = 90


def said(number: int, r: random.Random) -> str:
    return f"a {r.choice(['dull', 'bright', 'long'])} film about {r.choice(THINGS)} {number // 2}"  # each one twice


def squad(number: int, r: random.Random) -> Row:
    thing = r.choice(THINGS)
    context = f"A film of {1950 + number} about {thing}."
    answers = (
        {"text": [thing], "answer_start": [context.index(thing)]} if number % 9 else {"text": [], "answer_start": []}
    )
    return {
        "id": f"q{number}",
        "title": "T",
        "question": f"What is film {number} about?",
        "context": context,
        "answers": answers,
    }


def talk(number: int, r: random.Random) -> Row:
    return {"conversations": [{"from": "human", "value": said(number, r)}, {"from": "gpt", "value": "a good film"}]}


FORMS = {
    "labels": Form(
        "a.csv",
        lambda n, r: {"id": n, "text": said(n, r), "label": r.choice(["bad", "good"])},
        "classification",
        {"instruction": "text", "output": "label"},
    ),
    "odd names of classes": Form(
        "a.csv",
        lambda n, r: {"text": said(n, r), "class": r.choice(["Yes, sure", "No: never", "#maybe", "null"])},
        "classification",
        {"instruction": "text", "output": "class"},
    ),
    "class numbers": Form(
        "a.parquet",
        lambda n, r: {"评论 🎬": said(n, r), "y": n % 3, "text": f"t{n}"},
        "classification",
        {"instruction": "评论 🎬", "output": "y", "output_type": "text", "ignore": ["text"]},
        ("评论 🎬",),
    ),
    "numbers": Form(
        "a.csv",
        lambda n, r: {"Review": said(n, r), "Score": f"{r.uniform(0, 5):.2f}"},
        "regression",
        {"instruction": "Review", "output": "Score", "output_type": "number"},
        ("Review",),
    ),
    "several labels": Form(
        "a.tsv",
        lambda n, r: {"text": said(n, r), "genres": "|".join(r.sample(THINGS, r.randint(1, 3)))},
        "multilabel",
        {"instruction": "text", "output": "genres", "output_type": "list", "separator": "|"},
    ),
    "list of labels": Form(
        "a.jsonl",
        lambda n, r: {"text": said(n, r), "labels": r.sample(THINGS, r.randint(0, 3))},
        "multilabel",
        {"instruction": "text", "output": "labels"},
    ),
    "tags": Form(
        "a.jsonl",
        lambda n, r: {"tokens": said(n, r).split(), "ner_tags": [r.choice(["O", "B-X"]) for _ in said(n, r).split()]},
        "token_classification",
        {"input": "tokens", "output": "ner_tags"},
        ("tokens",),
    ),
    "tags in text cells": Form(
        "a.csv",
        lambda n, r: {"sentence": f"a film {n}", "tags": f"O O {r.choice(['O', 'B-N'])}"},
        "token_classification",
        {"input": "sentence", "output": "tags", "output_type": "list", "separator": " "},
        ("sentence",),
    ),
    "questions": Form(
        "a.json",
        squad,
        "span",
        {
            "instruction": "question",
            "input": "context",
            "output": "answers.text",
            "origin": "answers",
            "ignore": ["title"],
        },
        ("question", "context"),
        settings={"no_answer": True},
    ),
    "labeled pairs": Form(
        "a.csv",
        lambda n, r: {
            "premise": said(n, r),
            "hypothesis": f"it is {n // 2}",
            "label": r.choice(["yes", "no", "maybe"]),
        },
        "classification",
        {"instruction": "premise", "input": "hypothesis", "output": "label"},
        ("premise", "hypothesis"),
    ),
    "scored pairs": Form(
        "a.jsonl",
        lambda n, r: {"sentence1": said(n, r), "sentence2": f"it is {n // 2}", "score": round(r.random(), 3)},
        "regression",
        {"instruction": "sentence1", "input": "sentence2", "output": "score"},
        ("sentence1", "sentence2"),
    ),
    "matching texts": Form(
        "a.jsonl",
        lambda n, r: {"anchor": said(n, r), "positive": f"film {n // 2} is told here"},
        "similarity",
        {"instruction": "anchor", "output": "positive"},
        ("anchor",),
    ),
    "choice": Form(
        "a.jsonl",
        lambda n, r: {
            "question": f"Which film is {n}?",
            "options": [f"{c} {n}" for c in "abcd"],
            "answer": r.choice("ABCD"),
        },
        "similarity",
        {"instruction": "question", "candidates": "options", "output": "answer", "output_type": "candidate"},
        ("question",),
    ),
    "alpaca": Form(
        "a.json",
        lambda n, r: {"instruction": f"Name film {n // 2}.", "input": "", "output": said(n, r) + " of old"},
        "language_model",
        {"instruction": "instruction", "output": "output"},
        ("instruction",),
        writer=True,
    ),
    "prompt and completion as messages": Form(
        "a.jsonl",
        lambda n, r: {
            "prompt": [{"role": "user", "content": said(n, r)}],
            "completion": [{"role": "assistant", "content": "a good film"}],
        },
        "language_model",
        {"messages": "prompt + completion"},
        ("prompt",),
        writer=True,
    ),
    "preferences": Form(
        "a.parquet",
        lambda n, r: {"prompt": said(n, r), "chosen": f"a good film {n}", "rejected": "no"},
        "language_model",
        {"instruction": "prompt", "output": "chosen", "ignore": ["rejected"]},
        ("prompt",),
        writer=True,
    ),
    "chat": Form("a.jsonl", talk, "language_model", {"messages": "conversations"}, ("conversations",), writer=True),
}


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            sheet = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            sheet.writerows([list(rows[0]), *(row.values() for row in rows)])
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
        path.write_text(text, encoding="utf-8")
    return path


def look(path: Path, out: Path, **settings: object) -> Config:
    made = inspect(InspectConfig(files=[str(path)], out=str(out), **{"backbone": "films", **settings}))  # type: ignore[arg-type]
    return load(made.settings)


def rows_of(config: Config) -> dict[str, list[dict[str, object]]]:
    return {split: read_jsonl(source.path) for split in SPLITS for source in getattr(config.data, split)}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str, tmp_path: Path, language_models: dict[str, Path]) -> None:
    form, draw = FORMS[name], random.Random(0)
    rows = [form.row(number, draw) for number in range(form.rows)]
    backbone = str(language_models["llama"]) if form.writer else "films"
    config = look(write(tmp_path / form.file, rows), tmp_path / "my.yaml", backbone=backbone)

    # task and fields
    assert config.task.name == form.task
    fields = config.data.train[0].fields
    found = {k: v for k, v in vars(fields).items() if v != getattr(FieldsConfig(), k) or k in form.fields}
    assert found == dict(form.fields)
    assert all(getattr(config.task, setting) == value for setting, value in form.settings.items())

    # splits: all rows, and no input in two of them
    split = rows_of(config)
    assert set(split) == set(SPLITS) and sum(map(len, split.values())) == len(rows)
    own = {part: {json.dumps([row[c] for c in form.own]).lower() for row in split[part]} for part in SPLITS}
    assert (
        not own["train"] & own["test"] and not own["train"] & own["validation"] and not own["test"] & own["validation"]
    )
    assert 4 <= len(split["test"]) <= 16 and 4 <= len(split["validation"]) <= 16

    # every row is encoded, none is cut or dropped
    data = RunData(config)
    task = open_task(data.config, backbone_folder(backbone))
    for part in SPLITS:
        examples = [e.example for e in list(data.cases(task, part))]
        assert len(set(map(id, examples))) == len(split[part])
    assert not task.context.counts and not data.skipped


def test_a_configuration_trains(tmp_path: Path) -> None:
    form, draw = FORMS["labels"], random.Random(0)
    config = look(write(tmp_path / form.file, [form.row(n, draw) for n in range(40)]), tmp_path / "my.yaml")
    train(replace(config, run_dir=str(tmp_path / "run"), steps=2))
    assert (tmp_path / "run" / "report.html").exists()


def test_the_verb_prints_what_was_found_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form, draw = FORMS["labels"], random.Random(0)
    path = write(tmp_path / form.file, [form.row(n, draw) for n in range(40)])
    out = tmp_path / "my.yaml"
    main(["inspect", str(path), "--out", str(out), "--backbone", "films"])
    printed = capsys.readouterr().out
    assert f"python -m instructrec_jax.train --config_path {out}" in printed.splitlines()[-1]
    assert "classification" in printed and "instruction: text" in printed
    text = out.read_text(encoding="utf-8")
    assert all(
        "#" in line for line in text.splitlines() if "type:" in line or "max_length:" in line or "steps:" in line
    )
    with pytest.raises(ValueError, match="--overwrite"):
        main(["inspect", str(path), "--out", str(out), "--backbone", "films"])
    main(["inspect", "--out", str(out), "--backbone", "films", str(path), "--overwrite", "true"])
    assert out.read_text(encoding="utf-8") == text


def test_the_default_network_needs_no_download(tmp_path: Path) -> None:
    form, draw = FORMS["labels"], random.Random(0)
    path = write(tmp_path / form.file, [form.row(n, draw) for n in range(40)])
    assert look(path, tmp_path / "my.yaml", backbone=None).backbone.path == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("count", "backbone", "is_proposed"), [(40, None, True), (600, None, False), (40, "bert", False)]
)
def test_few_labels_of_a_sentence_encoder_propose_a_fitted_head(
    count: int, backbone: str | None, is_proposed: bool, tmp_path: Path, checkpoint: Path
) -> None:
    form, draw = FORMS["labels"], random.Random(0)
    path = write(tmp_path / form.file, [form.row(n, draw) for n in range(count)])
    chosen = None if backbone is None else str(checkpoint)
    made = inspect(InspectConfig(files=[str(path)], out=str(tmp_path / "my.yaml"), backbone=chosen))
    assert ("vector_classification" in made.describe()) == is_proposed
    if is_proposed:
        text = made.settings.read_text(encoding="utf-8")
        assert "vector_classification" in text and load(made.settings).task.name == "classification"


def test_splits_follow_seed_and_labels(tmp_path: Path) -> None:
    rows = [{"text": f"film {n}", "label": "rare" if n % 20 == 0 else "usual"} for n in range(200)]
    path = write(tmp_path / "a.csv", rows)
    first = rows_of(look(path, tmp_path / "a.yaml"))
    backwards = write(tmp_path / "b.csv", rows[::-1])
    assert {s: {r["text"] for r in v} for s, v in first.items()} == {
        s: {r["text"] for r in v} for s, v in rows_of(look(backwards, tmp_path / "b.yaml")).items()
    }
    assert rows_of(look(path, tmp_path / "c.yaml", seed=1)) != first
    for split in ("validation", "test"):
        assert Counter(row["label"] for row in first[split]) == {"rare": 1, "usual": 19}


def test_many_rare_labels_leave_rows_to_test(tmp_path: Path) -> None:
    rows = [{"text": f"film {n}", "labels": [f"l{n % 50}", f"l{(n + 1) % 50}"]} for n in range(60)]
    config = look(write(tmp_path / "a.jsonl", rows), tmp_path / "a.yaml")
    assert len(rows_of(config)["test"]) >= 4 and len(config.task.label_names or ()) in (0, 50)


def test_splits_by_time(tmp_path: Path) -> None:
    rows = [{"text": f"film {n}", "label": "ab"[n % 2], "date": f"2020-{n % 12 + 1:02}-01"} for n in range(120)]
    config = look(write(tmp_path / "a.csv", rows), tmp_path / "a.yaml")
    times = {split: [str(row["date"]) for row in found] for split, found in rows_of(config).items()}
    assert max(times["train"]) <= min(times["validation"]) and max(times["validation"]) <= min(times["test"])
    late = [{"text": f"film {n}", "label": "new" if n > 110 else "ab"[n % 2], "time": n} for n in range(120)]
    config = look(write(tmp_path / "b.csv", late), tmp_path / "b.yaml")
    assert config.task.label_names == ["a", "b", "new"]  # training has not seen the last one


def test_files_named_train_and_test_keep_their_rows(tmp_path: Path) -> None:
    rows = [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(60)]
    train_file = write(tmp_path / "train.csv", rows[:50])
    test_file = write(tmp_path / "test.csv", rows[48:])  # two rows are in both
    made = inspect(
        InspectConfig(files=[str(train_file), str(test_file)], out=str(tmp_path / "a.yaml"), backbone="films")
    )
    split = rows_of(load(made.settings))
    assert [row["text"] for row in split["test"]] == [row["text"] for row in rows[48:]]
    assert len(split["train"]) + len(split["validation"]) == 48 and made.parts.left_out == 2
    assert set(rows_of(look(test_file, tmp_path / "alone.yaml"))) == set(SPLITS)  # there is nothing else to train on


def test_blank_cells_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [{"text": f"film {n}" if n else "", "label": "ab"[n % 2] if n % 10 else "NaN"} for n in range(60)]
    path = write(tmp_path / "a.csv", rows)
    made = inspect(InspectConfig(files=[str(path)], out=str(tmp_path / "a.yaml"), backbone="films"))
    assert sum(map(len, rows_of(load(made.settings)).values())) == 54
    assert "6 of 60" in made.notes[0] and "6 of 60" in made.settings.read_text(encoding="utf-8")


def test_long_texts(tmp_path: Path) -> None:
    rows = [{"text": "film " * (3000 if n == 7 else 5) + str(n), "label": "ab"[n % 2]} for n in range(300)]
    config = look(write(tmp_path / "a.csv", rows), tmp_path / "a.yaml")
    assert config.data.max_length <= 64 and config.data.truncate == "right"
    rows = [{"text": "film " * 90 + str(n), "label": "ab"[n % 2]} for n in range(60)]
    config = look(write(tmp_path / "b.csv", rows), tmp_path / "b.yaml")
    assert config.data.max_length >= 92 and config.data.truncate == "error"


def test_rates_are_those_of_training() -> None:
    assert RATES == {name: DEFAULT_RATES[name] for name in RATES}


def numbered(count: int, **columns: Callable[[int], object]) -> list[Row]:
    return [{name: make(n) for name, make in columns.items()} for n in range(count)]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (numbered(40, text=lambda n: f"film {n}"), "text"),
        (numbered(1, text=lambda n: f"film {n}", label=lambda n: "a"), "label"),
        (numbered(2, text=lambda n: f"film {n}", label=lambda n: "ab"[n]), "2 different inputs"),
        (numbered(40, text=lambda n: f"film {n}", label=lambda n: f"label {n}"), "label.*40"),
        (numbered(40, text=lambda n: f"film {n}", label=lambda n: "a"), "label.*same"),
        (numbered(40, text=lambda n: f"film {n}", label=lambda n: ""), "text, label"),
        (
            numbered(40, text=lambda n: f"film {n}", label=lambda n: "ab"[n % 2], topic=lambda n: "cd"[n % 2]),
            "--target",
        ),
        (numbered(40, user_id=lambda n: n % 7, item_id=lambda n: n % 5, rating=lambda n: n % 3), "prepare table"),
        (
            numbered(40, who=lambda n: f"u{n % 7}", asin=lambda n: f"p{n % 5}", stars=lambda n: n % 3, at=lambda n: n),
            "asin.*prepare table.*--user_column",
        ),
        (numbered(40, prompt=lambda n: f"film {n}", completion=lambda n: f"it is old {n}"), "--backbone"),
        (numbered(40, text=lambda n: f"film {n}", target=lambda n: [f"a text {n}", f"another {n}"]), "--backbone"),
        (numbered(40, movieId=lambda n: n, turns=lambda n: [{"a": n}]), "movieId, turns"),
        (numbered(40, **{"a{b": lambda n: f"film {n}", "label": lambda n: "ab"[n % 2]}), r"a\{b"),
        (numbered(40, **{"text;label": lambda n: f"film {n};a"}), "text;label.*';'"),
        ([{"text": "film", "label": "a"}, {"text": None, "label": {"x": 1}}], "label"),
        (numbered(40, text=lambda n: f"film {n}", rating=lambda n: f"{n % 5},5"), "rating.*'0,5'"),
        (
            numbered(40, text=lambda n: f"film {n}", fee=lambda n: f"{n % 5}%", label=lambda n: f"${n % 5}"),
            r"label.*\$0",
        ),
        (numbered(40, text=lambda n: f"film {n}", score=lambda n: f"{n / 7}" if n % 9 else "inf"), "score.*'inf'"),
        (numbered(40, text=lambda n: f"film {n}", labels=lambda n: str(["a", "bc"[n % 2]])), "labels.*lists"),
    ],
)
def test_what_cannot_be_guessed_is_one_line(rows: list[Row], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named) as error:
        look(write(tmp_path / "a.jsonl", rows), tmp_path / "my.yaml")
    assert len(str(error.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        *[(text, "") for text in ("", "text,label\n", "text,text\na,b\n", '{"text": 1', "text,label\nx,a,b\n")],
        ("text;label\na, b;c\n", "';'"),
        ("text\tlabel\na, b\tc\n", "tsv"),
        ("text,label\rx,a\r", r"\\r"),
        ("text,label\nx,a\n".encode("utf-16-le").decode("latin-1"), "UTF-16"),
    ],
)
def test_hostile_files(content: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode("utf-8"))
    with pytest.raises(ValueError, match=f"(?s)a.csv.*{named}") as error:
        look(path, tmp_path / "my.yaml")
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "my.yaml").exists()


def test_a_row_that_training_would_refuse_is_named(tmp_path: Path) -> None:
    rows = [{"text": f"film {n}" if n else "", "label": "ab"[n % 2]} for n in range(30)]
    rows[20]["text"] = "a\x00b"
    with pytest.raises(ValueError, match="a.jsonl, row 21.*instruction"):
        look(write(tmp_path / "a.jsonl", rows), tmp_path / "my.yaml")


def test_odd_names_of_columns(tmp_path: Path) -> None:
    rows = [{"a: #b\n'\"": f"film {n}", "é – 😀": "ab"[n % 2], "no": "x" * (n % 3)} for n in range(40)]
    config = look(write(tmp_path / "a.csv", rows), tmp_path / "my.yaml", target="é – 😀")
    assert config.data.train[0].fields.instruction == "a: #b\n'\"" and config.data.train[0].fields.ignore == ["no"]
    assert len(RunData(config).examples("train")) == len(rows_of(config)["train"])


def test_a_cell_of_megabytes(tmp_path: Path) -> None:
    rows = [{"text": "film " * (2_000_000 if n == 3 else 5) + str(n), "label": "ab"[n % 2]} for n in range(30)]
    assert look(write(tmp_path / "a.csv", rows), tmp_path / "my.yaml").data.truncate == "right"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"out": "my.txt"}, "--out"),
        ({"out": ""}, "--out"),
        ({"test": 0.7}, "--test"),
        ({"target": "verdict"}, "--target"),
        ({"files": []}, "files"),
        ({"files": ["a.csv", "a.csv"]}, "a.csv is named twice"),
        ({"out": "a.csv/my.yaml"}, "--out"),
    ],
)
def test_settings(settings: Mapping[str, object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.csv"), numbered(20, text=lambda n: f"film {n}", label=lambda n: "ab"[n % 2]))
    with pytest.raises(ValueError, match=named):
        inspect(InspectConfig(**{"files": ["a.csv"], "out": "my.yaml", "backbone": "films", **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_written_answers(kind: str, tmp_path: Path, language_models: dict[str, Path]) -> None:
    """Summaries in lists, and answers to questions, with every kind of language model."""
    backbone = str(language_models[kind])
    summaries = numbered(40, article=lambda n: f"film {n} is about war", summary=lambda n: [f"war {n}", f"a film {n}"])
    answers = numbered(40, question=lambda n: f"a film {n}", context=lambda n: f"film {n} old", answer=lambda n: "old")
    orders = numbered(40, prompt=lambda n: f"name film {n}", completion=lambda n: f"a film {n} of old")
    found = []
    for number, rows in enumerate((summaries, answers, orders)):
        config = look(write(tmp_path / f"{number}.jsonl", rows), tmp_path / f"{number}.yaml", backbone=backbone)
        data = RunData(config)
        task = open_task(data.config, backbone_folder(backbone))
        assert sum(len(data.cases(task, split)) for split in SPLITS) == 40 and not task.context.counts
        found.append(config.task.name)
    assert found == ["summarization", "question_answering", "language_model"]
