"""Converts public data sets of medicine, law and education to train.jsonl, validation.jsonl and test.jsonl.

    python scripts/domain_data.py pubmedqa     --source raw/pubmedqa     --out data/pubmedqa
    python scripts/domain_data.py unfair_terms --source raw/unfair_terms --out data/unfair_terms
    python scripts/domain_data.py unfair_tos   --source raw/unfair_tos/unfair_tos.jsonl --out data/unfair_tos
    python scripts/domain_data.py legalbench   --source raw/legalbench   --out data/legalbench --most 20
    python scripts/domain_data.py arc          --source raw/arc          --out data/arc --most 500
    python scripts/domain_data.py mmlu         --source raw/mmlu         --out data/mmlu --most 20
    python scripts/domain_data.py cmmlu        --source raw/cmmlu        --out data/cmmlu --most 20
    python scripts/domain_data.py ceval        --source raw/ceval        --out data/ceval --most 20
    python scripts/domain_data.py onestop      --source raw/onestop      --out data/onestop
    python scripts/domain_data.py clear        --source raw/clear.csv    --out data/clear

scripts/download_domain_data.py gets the files; docs/domains.md names sources and licenses. Official splits are kept.
Other sets are split by whole documents, articles or authors, sampled with --seed.
"""

import csv
import io
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from public_data import Reader, Splits, cut, dealt, file_in, main, rows_of, stratified, text_of

from instructrec_jax.data.example import Example

DECISIONS = ("yes", "no", "maybe")
TERMS = {  # tags of the corpus, without the level of unfairness
    "a": "arbitration",
    "ch": "unilateral change",
    "cr": "content removal",
    "j": "jurisdiction",
    "law": "choice of law",
    "ltd": "limitation of liability",
    "ter": "unilateral termination",
    "use": "contract by using",
    "pinc": "privacy included",
}
LEVELS = {"Ele-Txt": "elementary", "Int-Txt": "intermediate", "Adv-Txt": "advanced"}
LETTERS = "ABCD"


def value(row: Mapping[str, Any], column: str, where: str) -> Any:
    """row[column]. Raises ValueError, which names the place and the columns that there are."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with {column!r}, found {type(row).__name__}.")
    if row.get(column) is None:
        raise ValueError(f"{where} has no {column!r}; it has {', '.join(map(str, row)) or 'nothing'}.")
    return row[column]


def words(row: Mapping[str, Any], column: str, where: str) -> str:
    """The same of a text, without the spaces around it."""
    found = value(row, column, where)
    if not isinstance(found, str):
        raise ValueError(f"{where}: {column!r} is {found!r}, expected a text.")
    return found.strip()


def one_of(answer: Any, known: Sequence[str], where: str) -> str:
    if answer not in known:
        raise ValueError(f"{where}: unknown label {answer!r}, expected one of {', '.join(known)}.")
    return str(answer)


def lines_of(path: Path) -> list[str]:
    lines = re.split("\r\n|\n|\r", text_of(path))
    return [line.strip() for line in (lines if lines[-1] else lines[:-1])]


def folders_with(root: Path, name: str) -> list[Path]:
    """The folders that hold a file or folder `name`, but for what macOS puts into archives."""
    return sorted(path.parent for path in root.rglob(name) if "__MACOSX" not in path.parts)


# ---------------------------------------------------------------- medicine


def pubmedqa(source: Path, seed: int) -> Splits:
    """Questions on abstracts: the 500 official test questions; a tenth of the other 500 to validate on."""
    rows = json.loads(text_of(file_in(source, "ori_pqal")))
    test = json.loads(text_of(file_in(source, "test_ground_truth")))
    if not (isinstance(rows, dict) and isinstance(test, dict)):
        raise ValueError("expected objects by PubMed number in ori_pqal.json and test_ground_truth.json.")
    if missing := sorted(set(test) - set(rows)):
        raise ValueError(f"ori_pqal.json lacks {len(missing)} of the test questions, such as {missing[0]}.")
    found: Splits = {"train": [], "test": []}
    for number, row in rows.items():
        where = f"question {number}"
        answer = one_of(value(row, "final_decision", where), DECISIONS, where)
        if test.get(number, answer) != answer:
            raise ValueError(f"{where}: {answer!r} in ori_pqal.json, {test[number]!r} in test_ground_truth.json.")
        contexts = value(row, "CONTEXTS", where)
        if not (isinstance(contexts, list) and all(isinstance(text, str) for text in contexts)):
            raise ValueError(f"{where}: CONTEXTS is no list of texts.")
        example = Example(
            instruction=words(row, "QUESTION", where),
            input="\n".join(text.strip() for text in contexts),
            output=answer,
            candidates=DECISIONS,
            task="medical_questions",
            id=number,
            origin={"language": "en"},
        )
        found["test" if number in test else "train"].append(example)
    return stratified(found["train"], (0.1, 0.0), seed) | {"test": found["test"]}


# ---------------------------------------------------------------- law


def unfair_terms(source: Path, seed: int) -> Splits:
    """Sentences of terms of service in four languages, with the kinds of unfairness (level 2 or 3).

    A company's terms are in the same split in all languages.
    """
    roots = [folder for folder in folders_with(source, "sentences") if (folder / "tags").is_dir()]
    if len(roots) != 1:
        raise ValueError(f"expected one folder with sentences/ and tags/, found {len(roots)}.")
    examples = [
        example
        for language in sorted(path.name for path in (roots[0] / "sentences").iterdir())
        for file in sorted((roots[0] / "sentences" / language / "original").glob("*.txt"))
        for example in sentences(file, roots[0] / "tags" / language / "original" / file.name, language)
    ]
    return dealt(examples, [e.origin["document"] for e in examples], (0.1, 0.2), seed)


def sentences(file: Path, tags: Path, language: str) -> Iterator[Example]:
    texts, tagged = lines_of(file), lines_of(tags)
    where = f"{language}/{file.name}"
    if len(texts) != len(tagged):
        raise ValueError(f"{where} has {len(texts)} sentences, but {len(tagged)} lines of tags.")
    for number, (text, tag) in enumerate(zip(texts, tagged, strict=True), 1):
        kinds = set()
        for word in tag.split():
            parts = re.fullmatch("([a-z]+)([123])", word)
            if parts is None or parts[1] not in TERMS:
                raise ValueError(f"{where}, line {number}: unknown tag {word!r}, expected {', '.join(TERMS)} with 1-3.")
            kinds |= {TERMS[parts[1]]} if parts[2] in "23" else set()
        if text:
            yield Example(
                instruction=text,
                output=tuple(sorted(kinds)),
                task="unfair_terms",
                id=f"{language}-{file.stem}-{number}",
                origin={"language": language, "document": file.stem},
            )


def unfair_tos(source: Path, seed: int) -> Splits:
    """The English sentences as in LexGLUE, with its splits. Other labels than its eight are left out, as there."""
    splits: Splits = {"train": [], "validation": [], "test": []}
    names = {"train": "train", "val": "validation", "test": "test"}
    known, others = set(TERMS.values()) - {"privacy included"}, Counter[str]()
    for number, row in enumerate(rows_of(source), 1):
        where = f"line {number}"
        split = one_of(value(row, "data_type", where), list(names), where)
        labels = value(row, "labels", where)
        if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
            raise ValueError(f"{where}: 'labels' is {labels!r}, expected a list of names.")
        kinds = {label.lower() for label in labels}
        others.update(kinds - known)
        splits[names[split]].append(
            Example(
                instruction=words(row, "text", where),
                output=tuple(sorted(kinds & known)),
                task="unfair_terms",
                id=str(number),
                origin={"language": "en"},
            )
        )
    if others:
        print(f"left out labels: {', '.join(f'{name} ({count})' for name, count in others.items())}", file=sys.stderr)
    return splits


def legalbench(source: Path, seed: int) -> Splits:
    """Tasks that are answered by yes or no: a task's folder, or all those in a folder, with the official splits.

    A fifth of the few official training examples is there to validate on.
    """
    whole = [folder for folder in folders_with(source, "train.tsv") if (folder / "test.tsv").is_file()]
    splits: Splits = {"train": [], "test": []}
    for folder in whole:
        read = {name: legal_questions(folder, name) for name in splits}
        answers = {e.output for examples in read.values() for e in examples}
        if answers <= {"yes", "no"}:
            for name, examples in read.items():
                splits[name] += examples
        elif len(whole) == 1:
            raise ValueError(f"{folder.name} has other answers than yes and no: {sorted(map(str, answers))[:5]}.")
    if not splits["train"]:
        raise ValueError("found no folder with train.tsv and test.tsv whose answers are yes and no.")
    return stratified(splits["train"], (0.2, 0.0), seed) | {"test": splits["test"]}


def legal_questions(folder: Path, split: str) -> list[Example]:
    rows = list(csv.DictReader(io.StringIO(text_of(folder / f"{split}.tsv"), newline=""), delimiter="\t"))
    prompt = folder / "base_prompt.txt"
    wording = question_of(text_of(prompt)) if prompt.is_file() else None
    examples = []
    for number, row in enumerate(rows):
        where = f"{folder.name}/{split}.tsv, row {number + 1}"
        answer = words(row, "answer" if "answer" in row else "label", where).lower()
        rest = [
            text for name, text in row.items() if name and text and name not in ("index", "answer", "label", "slice")
        ]
        text = "\n".join(rest) if wording is None else re.sub(r"{{(.+?)}}", partial(_filled, row, where), wording)
        examples.append(
            Example(
                instruction=text.strip(),
                output=answer,
                candidates=("yes", "no"),
                task="legal_questions",
                id=f"{folder.name}-{split}-{number}",
                origin={"language": "en", "subject": folder.name},
            )
        )
    return examples


def question_of(prompt: str) -> str:
    """A prompt without its solved examples: the first paragraph, unless it is one of these, and the last."""
    paragraphs = re.split(r"\r?\n\s*\n", prompt.strip())
    first, last = paragraphs[0], paragraphs[-1]
    asked = re.sub(r"\n[^\n{}]*:\s*$", "", last)  # without "A:"
    solved = len(paragraphs) == 1 or first.partition(":")[0] == last.partition(":")[0]
    return asked if solved else f"{first}\n{asked}"


def _filled(row: Mapping[str, Any], where: str, name: re.Match[str]) -> str:
    return str(value(row, name[1].strip(), where))


# ---------------------------------------------------------------- education


def exams(language: str, source: Path, seed: int) -> Splits:
    """Questions with choices in dev/, val/ and test/, a table for each subject (MMLU, CMMLU, C-Eval).

    data: training is auxiliary_train/, where it is there, and dev/. Without val/ (CMMLU), and where the answers of
    test/ are secret and val/ is the test (C-Eval), a fifth of dev/ is there to validate on.
    """
    roots = [folder for folder in folders_with(source, "dev") if (folder / "dev").is_dir()]
    if len(roots) != 1:
        raise ValueError(f"expected one folder with dev/ and test/, found {len(roots)}.")
    parts = ("auxiliary_train", "dev", "val", "test")
    read = {name: [e for f in sorted((roots[0] / name).glob("*.csv")) for e in exam(f, language)] for name in parts}
    if read["val"] and read["test"]:
        return {"train": read["auxiliary_train"] + read["dev"], "validation": read["val"], "test": read["test"]}
    dev = dealt(read["dev"], range(len(read["dev"])), (0.2, 0.0), seed)
    return dev | {"train": read["auxiliary_train"] + dev["train"], "test": read["test"] or read["val"]}


def exam(file: Path, language: str) -> list[Example]:
    """The questions of a table; none where it has no answers."""
    rows = [row for row in csv.reader(io.StringIO(text_of(file), newline="")) if any(row)]
    header = [name.strip().lower() for name in rows[0]] if rows else []
    names = ["question", *LETTERS.lower(), "answer"]
    if "question" in header:
        if "answer" not in header:
            return []
        if missing := [name for name in names if name not in header]:
            raise ValueError(f"{file.name} has no column {missing[0]!r}; it has {', '.join(header)}.")
        rows, places, width = rows[1:], [header.index(name) for name in names], len(header)
    else:
        places, width = list(range(6)), 6
    examples = []
    subject = re.sub("_(dev|val|test|train)$", "", file.stem)
    for number, row in enumerate(rows, 1):
        where = f"{file.name}, question {number}"
        if len(row) != width:
            raise ValueError(f"{where} has {len(row)} columns, expected {width} with question, A, B, C, D and answer.")
        question, *choices, answer = (row[place].strip() for place in places)
        right = choices[LETTERS.index(one_of(answer, LETTERS, where))]
        examples += chosen(
            question,
            choices,
            right,
            where,
            id=f"{file.parent.name}-{subject}-{number}",
            subject=subject,
            language=language,
        )
    return examples


def chosen(
    question: str, choices: Sequence[str], right: str, where: str, *, id: str, subject: str, language: str
) -> list[Example]:
    """The example in a list; an empty list, said on stderr, where the text of question or answer is empty."""
    candidates = tuple(dict.fromkeys(text for text in choices if text))
    if not question or not right or len(candidates) < 2:
        print(f"left out: {where}, without a question, its answer or a second choice", file=sys.stderr)
        return []
    origin = {"language": language, "subject": subject}
    return [
        Example(instruction=question, output=right, candidates=candidates, task="exam_questions", id=id, origin=origin)
    ]


def arc(source: Path, seed: int) -> Splits:
    """Science questions of ARC-Easy/ and ARC-Challenge/ (.jsonl of the release or .parquet), with their splits."""
    splits: Splits = {"train": [], "validation": [], "test": []}
    for part in ("ARC-Easy", "ARC-Challenge"):
        for name, stems in {"train": "train", "validation": "dev|validation", "test": "test"}.items():
            files = [f for f in source.rglob(f"{part}/*") if re.match(f"({part}-)?({stems})[-.]", f.name, re.I)]
            if len(files) != 1:
                raise ValueError(f"expected one file of {part}, {name}, found {[f.name for f in files]}.")
            parquet = files[0].suffix == ".parquet"
            rows = pq.read_table(files[0]).to_pylist() if parquet else rows_of(files[0])
            for number, row in enumerate(rows, 1):
                splits[name] += science_question(row, f"{files[0].name}, line {number}", part)
    return splits


def science_question(row: Mapping[str, Any], where: str, part: str) -> list[Example]:
    question = value(row, "question", where)
    listed = value(row if isinstance(question, str) else question, "choices", where)
    if isinstance(listed, Mapping):
        names, said = (value(listed, column, where) for column in ("label", "text"))
        same = isinstance(names, list) and isinstance(said, list) and len(names) == len(said)
        listed = [{"text": text, "label": name} for text, name in zip(said, names, strict=True)] if same else None
    if not isinstance(listed, list):
        raise ValueError(f"{where}: 'choices' should be a list of texts with labels, or as many texts as labels.")
    texts = {words(choice, "label", where): words(choice, "text", where) for choice in listed}
    right = texts[one_of(value(row, "answerKey", where), list(texts), where)]
    stem = question if isinstance(question, str) else words(question, "stem", where)
    name = str(value(row, "id", where))
    return chosen(stem.strip(), list(texts.values()), right, where, id=name, subject=part, language="en")


def onestop(source: Path, seed: int) -> Splits:
    """News articles, each written for three levels; the versions of an article are in the same split."""
    examples: list[Example] = []
    for folder, level in LEVELS.items():
        files = [file for path in folders_with(source, folder) for file in sorted((path / folder).glob("*.txt"))]
        if not files:
            raise ValueError(f"found no texts in a folder {folder}.")
        for file in files:
            lines = [line for line in lines_of(file) if line]
            lines = lines[1:] if lines and lines[0].lower() == level else lines  # the level itself, in Int-Txt
            if not lines:
                raise ValueError(f"{folder}/{file.name} is empty.")
            name = re.sub("-(ele|int|adv)$", "", file.stem, flags=re.I).strip()
            origin = {"language": "en", "article": name.lower()}
            text, label = "\n".join(lines), level
            examples.append(
                Example(instruction=text, output=label, task="reading_level", id=f"{name}-{level}", origin=origin)
            )
    return dealt(examples, [e.origin["article"] for e in examples], (0.1, 0.2), seed)


def clear(source: Path, seed: int) -> Splits:
    """Excerpts with teachers' ratings of their ease (higher is easier); the competition's split, where it is there."""
    examples, groups, official = [], list[Hashable](), list[str]()
    for number, row in enumerate(rows_of(source), 1):
        where = f"row {number}"
        named = {re.sub(r"[\s_]+", " ", str(name)).strip().lower(): text for name, text in row.items()}
        said = value(named, "bt easiness", where)
        try:
            ease = float(said)
        except (ValueError, TypeError):
            ease = math.nan
        if not math.isfinite(ease):
            raise ValueError(f"{where}: the ease is {said!r}, expected a number.")
        text = words(named, "excerpt", where)
        author = str(named.get("author") or "").strip()
        examples.append(
            Example(
                instruction=text,
                output=ease,
                task="ease_of_reading",
                id=str(named.get("id") or number),
                origin={"language": "en"} | ({"author": author} if author else {}),
            )
        )
        groups.append(author or number)
        official.append(str(named.get("kaggle split") or "").strip().lower())
    if not set(official) >= {"train", "test"}:
        return dealt(examples, groups, (0.1, 0.2), seed)
    splits: Splits = {"train": [], "validation": [], "test": []}
    validation = cut(
        [group for group, split in zip(groups, official, strict=True) if split == "train"], (0.1, 0.0), seed
    )
    for example, group, split in zip(examples, groups, official, strict=True):
        one_of(split, ("train", "test"), f"excerpt {example.id}")
        splits["test" if split == "test" else validation[group]].append(example)
    return splits


READERS: dict[str, Reader] = {
    **{reader.__name__: reader for reader in (pubmedqa, unfair_terms, unfair_tos, legalbench, arc, onestop, clear)},
    "mmlu": partial(exams, "en"),
    "cmmlu": partial(exams, "zh"),
    "ceval": partial(exams, "zh"),
}


if __name__ == "__main__":
    main(READERS, __doc__)
