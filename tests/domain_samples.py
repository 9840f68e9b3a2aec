"""Small samples, written for the tests, in the public formats that scripts/domain_data.py reads."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from instructrec_jax.files import write_jsonl

DECISIONS = ("yes", "no", "maybe")
TAGS = ("ltd2", "ch3 ter2", "", "j1", "law2 ")


def pubmedqa(folder: Path, count: int = 30) -> Path:
    rows = {
        str(1000 + n): {
            "QUESTION": f"Does a long book {n} help a bad film?",
            "CONTEXTS": [f"The old film {n} was dull.", "The new book was good – α < .05."],
            "LABELS": ["BACKGROUND", "RESULTS"],
            "MESHES": ["Humans"],
            "YEAR": "2019",
            "final_decision": DECISIONS[n % 3],
            "LONG_ANSWER": "It may.",
        }
        for n in range(count)
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ori_pqal.json").write_text(json.dumps(rows, indent=4))
    test = {number: row["final_decision"] for number, row in list(rows.items())[: count // 3]}
    (folder / "test_ground_truth.json").write_text(json.dumps(test))
    return folder


def unfair_terms(folder: Path, languages: Sequence[str] = ("en", "de", "pl")) -> Path:
    words = {"en": "We may end this", "de": "Wir dürfen dies ändern", "pl": "Możemy to zmienić"}
    for language in languages:
        for company in range(10):
            for kind, lines in (("sentences", [f"{words[language]} {n}" for n in range(5)]), ("tags", list(TAGS))):
                file = folder / "corpus_NLLP2021" / kind / language / "original" / f"Company_{company}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def unfair_tos(file: Path) -> Path:
    kinds = [["Limitation of liability"], [], ["Choice of law", "Jurisdiction"]]
    rows = [
        {"text": f"We are not liable {n}.", "labels": kinds[n % 3], "data_type": split}
        for n, split in enumerate(["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    ]
    write_jsonl(file, rows)
    return file


def legalbench(folder: Path) -> Path:
    prompt = 'Gossip is hearsay.\n\nQ: A film said "good". Is it?\nA: Yes\n\nQ: {{text}} Is it?\nA:'
    tasks = {
        "gossip": ("label", "text", prompt, ("Yes", "No")),
        "bought": ("answer", "contract", None, ("No", "Yes")),
        "colors": ("answer", "text", None, ("red", "blue")),
    }
    for name, (answer, text, base, answers) in tasks.items():
        (folder / name).mkdir(parents=True)
        if base is not None:
            (folder / name / "base_prompt.txt").write_text(base)
        for split, count in (("train", 6), ("test", 8)):
            rows = [(n, f'A "long"\nbook {name} {n}', answers[n % 2]) for n in range(count)]
            with (folder / name / f"{split}.tsv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, delimiter="\t").writerows([("index", text, answer), *rows])
    return folder


def exam_tables(folder: Path, form: str) -> Path:
    """`form`: mmlu (no header), cmmlu (no val/) or ceval (no answers in test/)."""
    choices = ("a film", "a book", "战争", "爱") if form != "mmlu" else ("a film", "a book", "war, love", "space")
    headers = {
        "mmlu": [],
        "cmmlu": [["", "Question", "A", "B", "C", "D", "Answer"]],
        "ceval": [["id", "question", "A", "B", "C", "D", "answer", "explanation"]],
    }
    for part in ("dev", "val", "test"):
        if form == "cmmlu" and part == "val":
            continue
        for subject in ("history", "biology"):
            rows: list[list[object]] = [
                [f"以下是什么 {n}？" if form != "mmlu" else f"What is it,\n{part} {n}?", *choices, "ABCD"[n % 4]]
                for n in range(5)
            ]
            rows = rows if form == "mmlu" else [[n, *row] for n, row in enumerate(rows)]
            rows = [[*row, "因为"] for row in rows] if form == "ceval" else rows
            table = [*headers[form], *rows]
            if form == "ceval" and part == "test":
                table = [row[:6] for row in table]
            suffix = "" if form == "cmmlu" else f"_{part}"
            file = folder / "data" / part / f"{subject}{suffix}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", newline="", encoding="utf-8") as opened:
                csv.writer(opened).writerows(table)
    return folder


def arc(folder: Path) -> Path:
    for part in ("ARC-Easy", "ARC-Challenge"):
        for split in ("Train", "Dev", "Test"):
            texts = {"A": "a film", "B": "a book"} if part == "ARC-Easy" else {"1": "war", "2": "love", "3": "space"}
            listed = [{"text": text, "label": label} for label, text in texts.items()]
            rows = [
                {
                    "id": f"{part}-{split}-{n}",
                    "question": {"stem": f"What is {n}?", "choices": listed},
                    "answerKey": answer,
                }
                for n, answer in enumerate([*texts] * 2)
            ]
            write_jsonl(folder / part / f"{part}-{split}.jsonl", rows)
    return folder


def onestop(folder: Path) -> Path:
    for level, short in (("Ele-Txt", "ele"), ("Int-Txt", "int"), ("Adv-Txt", "adv")):
        (folder / "Texts" / level).mkdir(parents=True)
        for n in range(12):
            first = "Intermediate\n" if short == "int" else ""
            text = f"{first}The old book {n}.\n\nIt is long.\n"
            (folder / "Texts" / level / f"WNL Book {n}-{short}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return folder


def clear(file: Path, *, kaggle: bool = True) -> Path:
    names = ["ID", "Author", "Excerpt", "BT Easiness", *(["Kaggle split"] if kaggle else [])]
    rows = [
        [n, f"Author {n % 12}", f"The long book,\nof war {n}", -1.5 + n / 10, *(["Test" if n % 4 == 0 else "Train"])]
        for n in range(36)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([names, *(row[: len(names)] for row in rows)])
    return file
