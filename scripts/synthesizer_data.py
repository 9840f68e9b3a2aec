"""Training examples of a synthesizer, a language model that writes questions and answers about a text.

    python scripts/synthesizer_data.py squad.json summaries.jsonl --out data/synthesizer.jsonl
    python -m instructrec_jax.train --task.type language_model --data.train data/synthesizer.jsonl ...
    python -m instructrec_jax.synthesize texts.jsonl --with runs/... --out pairs.jsonl

FILEs are in SQuAD's format (.json, data[].paragraphs[].qas), or records with context, question and answer (or answers),
or with text (or source, document, article) and summary (or target); each also .gz. All pairs of a text are one example:
the prompt of `synthesize` with the text, and the pairs in the form that it reads. A text has at most --pairs of them.
Pairs that `synthesize` itself would drop, because their answer is not in the text, are left out and counted.
"""

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from instructrec_jax.data.rows import open_rows
from instructrec_jax.files import write_jsonl
from instructrec_jax.synthesis.grounding import problem
from instructrec_jax.synthesis.model_pairs import read_pairs, synthesizer_prompt, written_pairs
from instructrec_jax.synthesis.passages import Passage
from instructrec_jax.tasks.generation.summarization import join

SUMMARIZE = {"en": "Summarize the text.", "zh": "请概括这篇文章。"}
Found = tuple[str, str | None, str]  # context, question (None: of a summary), answer


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to write")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of a text at most (default: 5)")
    options = parser.parse_args(args)
    dropped: Counter[str] = Counter()
    count = write_jsonl(options.out, examples(options.files, options.pairs, dropped))
    print(f"{count:,} examples in {options.out}")
    for reason, number in dropped.most_common():
        print(f"  {number:6,} left out: {reason}")


def examples(files: Iterable[Path], most: int, dropped: Counter[str]) -> Iterator[dict[str, object]]:
    by_text: dict[str, list[tuple[str, str]]] = {}
    for file in files:
        for context, question, answer in read(file):
            passage = Passage(context)
            if passage.language is None:
                dropped["text in neither English nor Chinese"] += 1
                continue
            asked = SUMMARIZE[passage.language] if question is None else question
            pairs, reasons = read_pairs(written_pairs([(asked, answer)]))
            dropped.update(reasons)
            for pair in pairs:
                if reason := problem(pair, passage):
                    dropped[reason] += 1
                elif len(by_text.setdefault(context, [])) == most:
                    dropped["beyond --pairs"] += 1
                else:
                    by_text[context].append((pair.instruction, pair.answer))
    for context, kept in by_text.items():
        yield synthesizer_prompt(Passage(context)).to_record() | {"output": written_pairs(kept)}


def read(file: Path) -> Iterator[Found]:
    """(context, question, answer) of a file; question None: the answer is a summary."""
    if file.name.removesuffix(".gz").endswith(".json"):
        opened = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")
        with opened as content:
            articles = json.load(content)
        if isinstance(articles, dict):
            for paragraph in (each for article in articles["data"] for each in article["paragraphs"]):
                for asked in paragraph["qas"]:
                    if asked["answers"]:  # SQuAD 2.0 has questions without one
                        yield paragraph["context"], asked["question"], asked["answers"][0]["text"]
            return
    rows = open_rows(str(file))
    for number in range(len(rows)):
        row = rows.row(number)
        if "question" in row:
            yield text_of(row["context"]), text_of(row["question"]), first(row.get("answer", row.get("answers")))
        else:
            context = next(row[name] for name in ("text", "source", "document", "article") if name in row)
            yield text_of(context), None, first(row.get("summary", row.get("target")))


def text_of(value: Any) -> str:
    return join([each.strip() for each in value]) if isinstance(value, list) else str(value).strip()


def first(value: Any) -> str:
    """The first of several answers, also in SQuAD's form {"text": [...]}."""
    value = value["text"] if isinstance(value, dict) else value
    return str(value[0] if isinstance(value, list) and value else value or "").strip()


if __name__ == "__main__":
    main()
