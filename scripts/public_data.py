"""Converts public data sets to train.jsonl, validation.jsonl and test.jsonl in this project's format.

    python scripts/public_data.py banking77   --source banking_data                --out data/banking77
    python scripts/public_data.py phrasebank  --source sentences_50agree.jsonl     --out data/phrasebank
    python scripts/public_data.py scitldr     --source SciTLDR-A                   --out data/scitldr
    python scripts/public_data.py xquad       --source xquad                       --out data/xquad
    python scripts/public_data.py tatoeba     --source cmn.tsv                     --out data/tatoeba
    python scripts/public_data.py t0          --source data_per_template/sentiment.jsonl --out data/t0_sentiment
    python scripts/public_data.py sgd         --source dstc8                       --out data/sgd
    python scripts/public_data.py xquad_each  --source xquad                       --out data/xquad_each

Medicine, law and education are in scripts/domain_data.py.

Files may be gzipped. Sources: Banking77, PolyAI-LDN/task-specific-datasets on GitHub (`banking_data`);
Financial PhraseBank, Malo et al. 2014 (rows with text and label); SciTLDR, allenai/scitldr; XQuAD,
google-deepmind/xquad (`xquad.LANGUAGE.json`); Tatoeba pairs, manythings.org (tab separated, with the header en, zh,
attribution); T0 templates, yizhongw/self-instruct, `data/finetuning/t0_train_50k` (rows with template, prompt and
completion, those of one data set in the same order under each of its templates); Schema-Guided Dialogue,
google-research-datasets/dstc8-schema-guided-dialogue (one dialogue a line: turns with speaker and utterance).

Official splits are kept. Other sets are split by groups (articles, source sentences, instances), sampled with --seed.
"""

import argparse
import csv
import gzip
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.mixture import permutation
from instructrec_jax.files import write_jsonl

Splits = dict[str, list[Example]]
Reader = Callable[[Path, int], Splits]


def main(readers: Mapping[str, Reader], description: str | None = __doc__) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=readers)
    parser.add_argument("--source", type=Path, required=True, help="file or folder of the data set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the splits of sets without official ones")
    parser.add_argument("--most", type=int, help="at most N test cases of each subject or task, by the seed")
    options = parser.parse_args()
    try:
        splits = readers[options.name](options.source, options.seed)
    except (OSError, EOFError, ValueError, KeyError, csv.Error) as error:
        raise SystemExit(f"{parser.prog}: {options.source}: {type(error).__name__}: {error}") from None
    if options.most is not None:
        splits["test"] = fewer(splits["test"], options.most, options.seed)
    if not splits["train"] or not splits["test"]:
        raise SystemExit(f"{parser.prog}: {options.source}: found nothing to train or nothing to test on.")
    for name, examples in splits.items():
        rows = write_jsonl(options.out / f"{name}.jsonl", (example.to_record() for example in examples))
        print(f"{name}: {rows:,} examples")


# ---------------------------------------------------------------- files


def text_of(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        how = f"iconv -f GB18030 -t UTF-8 {path.name} (or -f CP1252, or what it is)"
        raise ValueError(f"{path.name} is not UTF-8 (byte {error.start:,}). Convert it: {how}.") from None


def file_in(folder: Path, stem: str) -> Path:
    """The file `stem`.* of a folder. Raises ValueError unless there is exactly one."""
    found = sorted(path for path in folder.iterdir() if path.name.startswith(f"{stem}."))
    if len(found) != 1:
        raise ValueError(f"expected one file {stem}.*, found {[path.name for path in found]}.")
    return found[0]


def rows_of(path: Path) -> list[dict[str, Any]]:
    text = text_of(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("csv", "tsv"):
        quoting: Any = csv.QUOTE_MINIMAL if kind == "csv" else csv.QUOTE_NONE
        return list(csv.DictReader(io.StringIO(text), delimiter="," if kind == "csv" else "\t", quoting=quoting))
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from None
        if not isinstance(row, dict | None):
            raise ValueError(f"{path.name}, line {number}: expected an object, found {type(row).__name__}.")
        rows += [] if row is None else [row]
    return rows


def cut(groups: Sequence[Hashable], shares: tuple[float, float], seed: int) -> dict[Hashable, str]:
    """group -> train, validation or test; `shares`: of validation and test."""
    known = list(dict.fromkeys(groups))
    validation, test = (round(share * len(known)) for share in shares)
    names = ["test"] * test + ["validation"] * validation + ["train"] * (len(known) - test - validation)
    return {known[i]: name for i, name in zip(permutation(len(known), seed), names, strict=True)}


def dealt(examples: Sequence[Example], groups: Sequence[Hashable], shares: tuple[float, float], seed: int) -> Splits:
    split_of = cut(groups, shares, seed)
    splits: Splits = {"train": [], "validation": [], "test": []}
    for example, group in zip(examples, groups, strict=True):
        splits[split_of[group]].append(example)
    return splits


def stratified(examples: Sequence[Example], shares: tuple[float, float], seed: int) -> Splits:
    """Splits with the same shares of each label."""
    splits: Splits = {"train": [], "validation": [], "test": []}
    for label in sorted({str(e.output) for e in examples}):
        members = [e for e in examples if e.output == label]
        for name, chosen in dealt(members, list(range(len(members))), shares, seed).items():
            splits[name] += chosen
    return splits


def fewer(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most `most` examples of each `origin.subject` (else of each task), in their order."""
    taken: Counter[str] = Counter()
    kept = []
    for number in permutation(len(examples), seed).tolist():
        group = examples[number].origin.get("subject", examples[number].task)
        taken[group] += 1
        if taken[group] <= most:
            kept.append(number)
    return [examples[number] for number in sorted(kept)]


# ---------------------------------------------------------------- one function per data set


def banking77(source: Path, seed: int) -> Splits:
    """Requests to a bank with their intents; validation is 10% of each intent's official training rows."""

    def read(stem: str) -> list[Example]:
        rows = rows_of(file_in(source, stem))
        return [
            Example(instruction=row["text"].strip(), output=row["category"], task="intent", id=f"{stem}-{number}")
            for number, row in enumerate(rows)
        ]

    return stratified(read("train"), (0.1, 0.0), seed) | {"test": read("test")}


def phrasebank(source: Path, seed: int) -> Splits:
    """Sentences of financial news with their sentiment; duplicates are removed."""
    rows = {row["text"].strip(): row["label"] for row in rows_of(source)}
    examples = [
        Example(instruction=text, output=label, task="sentiment", id=f"phrasebank-{number}")
        for number, (text, label) in enumerate(rows.items())
    ]
    return stratified(examples, (0.1, 0.1), seed)


def scitldr(source: Path, seed: int) -> Splits:
    """Abstracts, one sentence per line, with one or several summaries of one sentence."""
    splits: Splits = {}
    for name, stem in (("train", "train"), ("validation", "dev"), ("test", "test")):
        splits[name] = [
            Example(
                instruction="Summarise this abstract in one sentence.",
                input="\n".join(sentence.strip() for sentence in row["source"] if sentence.strip()),
                output=tuple(target.strip() for target in row["target"] if target.strip()),
                task="summarization",
                id=row["paper_id"],
            )
            for row in rows_of(file_in(source, stem))
        ]
    return splits


def xquad(source: Path, seed: int) -> Splits:
    """Questions on paragraphs, split by article; training is in English, the test in all languages."""
    splits = xquad_each(source, seed)
    return {
        name: [e for e in examples if name == "test" or e.origin["language"] == "en"]
        for name, examples in splits.items()
    }


def xquad_each(source: Path, seed: int) -> Splits:
    """The same with training questions in every language, for scripts/leave_one_out.py."""
    languages = sorted(path.name.split(".")[1] for path in source.iterdir() if path.name.startswith("xquad."))
    read = [e for language in languages for e in xquad_rows(source, language)]
    numbers = [int(e.origin["article"]) for e in read]
    split_of = cut(sorted(set(numbers)), (0.1, 0.2), seed)
    splits: Splits = {"train": [], "validation": [], "test": []}
    for e, number in zip(read, numbers, strict=True):
        splits[split_of[number]].append(e)
    return splits


def xquad_rows(source: Path, language: str) -> Iterator[Example]:
    articles = json.loads(text_of(file_in(source, f"xquad.{language}")))["data"]
    for number, article in enumerate(articles):
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answer = question["answers"][0]
                origin = {"language": language, "article": str(number), "answer_start": str(answer["answer_start"])}
                yield Example(
                    instruction=question["question"],
                    input=paragraph["context"],
                    output=answer["text"],
                    task="question_answering",
                    id=f"{language}-{question['id']}",
                    origin=origin,
                )


def tatoeba(source: Path, seed: int) -> Splits:
    """English sentences with Chinese translations: one pair per row in training, all references per row in the test."""
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows_of(source):
        by_source[row["en"].strip()].append(row)

    def example(sentence: str, number: int, output: Any, attribution: str) -> Example:
        return Example(
            instruction="Translate into Chinese.",
            input=sentence,
            output=output,
            task="translation",
            id=f"tatoeba-{number}",
            origin={"attribution": attribution},
        )

    split_of = cut(list(by_source), (0.03, 0.05), seed)
    splits: Splits = {"train": [], "validation": [], "test": []}
    for number, (sentence, rows) in enumerate(by_source.items()):
        name = split_of[sentence]
        if name == "train":
            splits[name] += [example(sentence, number, row["zh"].strip(), row["attribution"]) for row in rows]
        else:
            every = tuple(dict.fromkeys(row["zh"].strip() for row in rows))
            splits[name].append(example(sentence, number, every, "; ".join(row["attribution"] for row in rows)))
    return splits


def t0(source: Path, seed: int, most_answers: int = 10) -> Splits:
    """Templated prompts with few possible answers, split by instance.

    The n-th row of a template belongs to the n-th instance of its data set. Templates with one answer, or more than
    `most_answers`, are left out.
    """
    by_template: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows_of(source):
        by_template[row["template"]].append(row)
    examples, instances = [], []
    for template, rows in by_template.items():
        answers = Counter(row["completion"].strip() for row in rows)
        if not 2 <= len(answers) <= most_answers:
            continue
        data = "_".join(template.split("_")[:2])
        for number, row in enumerate(rows):
            instances.append((data, number))
            examples.append(
                Example(
                    instruction=row["prompt"].strip(),
                    output=row["completion"].strip(),
                    candidates=tuple(sorted(answers)),
                    task=data,
                    id=f"{template}-{number}",
                    origin={"template": template, "instance": f"{data}-{number}"},
                )
            )
    return dealt(examples, instances, (0.1, 0.2), seed)


def sgd(source: Path, seed: int, turns: int = 5) -> Splits:
    """Every reply of the system, with the preceding turns of the dialogue."""
    splits: Splits = {}
    roles = {"USER": "user", "SYSTEM": "assistant"}
    for name, stem in (("train", "train"), ("validation", "dev"), ("test", "test")):
        splits[name] = []
        for row in rows_of(file_in(source, stem)):
            messages = [Message(roles[turn["speaker"]], turn["utterance"].strip()) for turn in row["turns"]]
            for place, message in enumerate(messages):
                before = messages[max(0, place - turns) : place]
                if message.role == "assistant" and before:
                    splits[name].append(
                        Example(
                            instruction="",
                            messages=(*before, message),
                            task="dialogue",
                            id=f"{row['dialogue_id']}-{place}",
                        )
                    )
    return splits


READERS: dict[str, Reader] = {
    reader.__name__: reader for reader in (banking77, phrasebank, scitldr, xquad, xquad_each, tatoeba, t0, sgd)
}


if __name__ == "__main__":
    main(READERS)
