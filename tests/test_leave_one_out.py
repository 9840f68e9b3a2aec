"""scripts/leave_one_out.py: what each run is trained and tested on, and its table."""

import json
from pathlib import Path
from typing import Any

import domain_samples
import leave_one_out
import numpy as np
import pytest
from domain_data import READERS
from tiny_runs import tiny_run, write_settings

from instructrec_jax.files import read_jsonl, write_jsonl

CONFIG = Path(__file__).parents[1] / "configs" / "education.yaml"


def folder_of(path: Path, task: str, answers: tuple[str, str], sizes: dict[str, int], language: str = "en") -> Path:
    rng = np.random.default_rng(len(task))
    for split, count in sizes.items():
        rows = [
            {
                "instruction": f"{rng.choice(['good', 'bad'])} book {task} {split} {n}",
                "output": answers[n % 2],
                "task": task,
                "id": f"{task}-{split}-{n}",
                "origin": {"language": language},
            }
            for n in range(count)
        ]
        write_jsonl(path / f"{split}.jsonl", rows)
    return path


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path) -> Path:
    config = tiny_run("classification", checkpoint, tmp_path, steps=2, evaluation__every=0, checkpoint__every=2)
    return write_settings(config, tmp_path / "settings.yaml")


def test_each_domain_is_left_out_once(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"train": 12, "validation": 4, "test": 8}
    folders = [folder_of(tmp_path / task, task, ("yes", "no"), sizes) for task in ("law", "school")]
    folders.append(folder_of(tmp_path / "news", "news/../x", ("yes", "no"), {"train": 0, "validation": 0, "test": 6}))
    out = tmp_path / "out"
    words = [str(settings), "--data", *map(str, folders), "--out", str(out), "--task.labels", "[yes, no]"]
    leave_one_out.main([*words, "--data.hold_out.labels", "[]"])
    table = capsys.readouterr().out.split("| tested on |")[1]
    found: Any = json.loads((out / "leave_one_out.json").read_text())
    assert list(found) == ["law", "school", "news/../x"]
    runs = sorted(path.name for path in out.iterdir() if (path / "evaluation.json").is_file() and "-" in path.name)
    assert [name for name in runs if not name.startswith("compared")] == [
        *("only-law", "only-school", "without-law", "without-news_x", "without-school")
    ]
    trained = {name: (out / name / "config.yaml").read_text() for name in runs if (out / name / "config.yaml").exists()}
    assert f"{out}/data/law/train.jsonl" not in trained["without-law"].split("test:")[0]
    assert f"{out}/data/school/train.jsonl" in trained["without-law"]
    assert f"{out}/data/law/test.jsonl" in trained["without-law"]
    cases = {row["id"] for row in read_jsonl(out / "compared-law" / "predictions.jsonl")}
    assert cases == {f"law-test-{n}" for n in range(8)}

    names = [row["name"] for row in found["law"]["rows"]]
    baselines = ["most frequent label", "TF-IDF + logistic regression"]
    assert names == [
        *("tuned (out)", "tuned (in)", "untuned"),
        *(f"{name} ({where})" for where in ("out", "in") for name in baselines),
    ]
    assert not any("(in)" in row["name"] for row in found["news/../x"]["rows"]), "it has nothing of its own to learn"
    alone: Any = json.loads((out / "without-law" / "evaluation.json").read_text())
    before = next(row["values"] for row in alone["rows"] if row["name"] == "before tuning")
    values = {row["name"]: row["values"] for row in found["law"]["rows"]}
    assert values["untuned"] == pytest.approx(before)
    own: Any = json.loads((out / "only-law" / "evaluation.json").read_text())
    assert values["tuned (in)"] == pytest.approx(next(r["values"] for r in own["rows"] if r["name"] == "after tuning"))
    for difference in found["law"]["differences"]:
        other, metric = difference["name"].removeprefix("tuned (out) − "), difference["metric"]
        assert difference["mean"] == pytest.approx(values["tuned (out)"][metric] - values[other][metric], abs=1e-6)
    assert table.count("\n| law |") == 7 and "| untuned |" in table

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(leave_one_out, "train", never)
    leave_one_out.main(words)
    assert capsys.readouterr().out.split("| tested on |")[1] == table


def test_domains_by_a_key_of_the_origin(settings: Path, tmp_path: Path) -> None:
    sizes = {"train": 2, "validation": 1, "test": 2}
    folders = [folder_of(tmp_path / name, "same", ("a", "b"), sizes, name) for name in ("en", "zh")]
    domains = leave_one_out.divided(folders, "language", tmp_path / "data")
    assert {name: sorted(files) for name, files in domains.items()} == {n: sorted(sizes) for n in ("en", "zh")}
    assert {row["origin"]["language"] for row in read_jsonl(domains["zh"]["train"])} == {"zh"}  # type: ignore[index]
    with pytest.raises(ValueError, match="expected two domains or more by task, .* found \\['same'\\]"):
        leave_one_out.divided(folders, "task", tmp_path / "data-by-task")
    others = [folder_of(tmp_path / f"more-{name}", "same", ("a", "c"), sizes, name) for name in ("en", "zh")]
    with pytest.raises(ValueError, match="data/en/train.jsonl has other examples, .* choose another --out"):
        leave_one_out.divided(others, "language", tmp_path / "data")
    with pytest.raises(ValueError, match="train.jsonl, line 1 names no subject"):
        leave_one_out.divided(folders, "subject", tmp_path / "data")
    for config, said in ((settings, "No such file .*nowhere"), ("nothing.yaml", "nothing.yaml does not exist")):
        with pytest.raises(SystemExit, match=f"leave_one_out: .*{said}"):
            leave_one_out.main([str(config), "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])


def test_losses_are_marked() -> None:
    rows = [
        {"name": name, "values": {"accuracy": value}} for name, value in (("tuned (out)", 0.5), ("a", 0.7), ("b", 0.5))
    ]
    differences = [
        {"name": "tuned (out) − a", "metric": "accuracy", "mean": -0.2, "low": -0.3, "high": -0.1},
        {"name": "tuned (out) − b", "metric": "accuracy", "mean": 0.0, "low": -0.1, "high": 0.1},
    ]
    lines = leave_one_out.table({"law": {"rows": rows, "differences": differences}}).split("\n")  # type: ignore[typeddict-item]
    assert lines[2] == "| law | tuned (out) | accuracy | 0.5000 | – | | |"
    assert lines[3].endswith("| 0.7000 | – | -0.2000 [-0.3000, -0.1000] | *loss* |")
    assert lines[4].endswith("| +0.0000 [-0.1000, +0.1000] | not significant |")
    one_document: Any = {"rows": rows, "differences": [], "metrics": ["accuracy"]}  # nothing to resample
    assert leave_one_out.table({"law": one_document}).count("| accuracy |") == 3


def test_questions_of_medicine_law_and_school_have_one_task(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, sample in {"pubmedqa": domain_samples.pubmedqa, "legalbench": domain_samples.legalbench}.items():
        for split, examples in READERS[name](sample(tmp_path / "raw" / name), 0).items():
            write_jsonl(tmp_path / name / f"{split}.jsonl", [e.to_record() for e in examples])
    exams = domain_samples.exam_tables(tmp_path / "raw" / "cmmlu", "cmmlu")
    for split, examples in READERS["cmmlu"](exams, 0).items():
        write_jsonl(tmp_path / "cmmlu" / f"{split}.jsonl", [e.to_record() for e in examples])
    words = [
        "--backbone.path",
        str(checkpoint),
        "--backbone.dtype",
        "float32",
        "--steps",
        "1",
        "--evaluation.every",
        "0",
    ]
    words += ["--checkpoint.every", "1", "--data.batch_size", "8", "--data.max_length", "32"]
    data = [str(tmp_path / name) for name in ("pubmedqa", "legalbench", "cmmlu")]
    leave_one_out.main([str(CONFIG), "--data", *data, "--out", str(tmp_path / "out"), *words])
    table = capsys.readouterr().out.split("| tested on |")[1]
    for domain in ("medical_questions", "legal_questions", "exam_questions"):
        assert [line.split(" | ")[1] for line in table.split("\n") if line.startswith(f"| {domain}")] == [
            *("tuned (out)", "tuned (in)", "untuned"),
            *(f"{name} ({where})" for where in ("out", "in") for name in ("chance", "TF-IDF cosine")),
        ]
