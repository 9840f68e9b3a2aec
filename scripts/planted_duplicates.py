"""How often `explain --examples` finds the copy of a query that was planted in the training examples first.

    python scripts/planted_duplicates.py plant --train data/banking77/train.jsonl --test data/banking77/test.jsonl \
        --out data/planted
    python -m instructrec_jax.train --data.train data/planted/train.jsonl --run_dir runs/planted ...
    python scripts/planted_duplicates.py measure runs/planted data/planted/queries.jsonl

`plant` draws test examples and hides them among training examples; with fewer --examples these are some of the same.
`measure` asks for each of them, and for the same text without one word, which training examples are behind (1) its own
label, (2) the label that the run predicts. It takes settings of train, such as --data.train with fewer examples.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from instructrec_jax.answering.evidence import words_of
from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.layout import aligned
from instructrec_jax.explanation.training_examples import SIMILARITIES, TrainingExamples
from instructrec_jax.explanation.words import without
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import pieces

PLANTED = "planted-"  # how the ids of planted examples begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    planting = verbs.add_parser("plant", help="write train.jsonl and queries.jsonl")
    planting.add_argument("--train", type=Path, required=True, help="training examples")
    planting.add_argument("--test", type=Path, required=True, help="examples to plant some of")
    planting.add_argument("--examples", type=int, default=1000, help="training examples, with the planted ones")
    planting.add_argument("--queries", type=int, default=40, help="planted examples")
    planting.add_argument("--seed", type=int, default=0)
    planting.add_argument("--out", type=Path, required=True, help="folder of both files")
    measuring = verbs.add_parser("measure", help="print how often the planted copy is found first")
    measuring.add_argument("run", type=Path)
    measuring.add_argument("queries", type=Path)
    measuring.add_argument("--projection", type=int, default=4096)
    measuring.add_argument("--step", type=int, help="checkpoint; default: all that are kept")
    options, settings = parser.parse_known_args()
    if options.verb == "plant":
        files = [read_jsonl(path) for path in (options.train, options.test)]
        train, test = ([Example.from_record(row) for row in rows] for rows in files)
        planted, queries = plant(train, test, options.examples, options.queries, options.seed)
        for name, examples in (("train", planted), ("queries", queries)):
            write_jsonl(options.out / f"{name}.jsonl", (example.to_record() for example in examples))
        return
    queries = [Example.from_record(row) for row in read_jsonl(options.queries)]
    print(measured(Run.open(options.run, settings, step=options.step), queries, options.projection))


def plant(
    train: Sequence[Example], test: Sequence[Example], examples: int, queries: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """(training examples in random order, the planted ones)."""
    rng = np.random.default_rng(seed)
    chosen = [replace(test[n], id=f"{PLANTED}{n}") for n in rng.permutation(len(test))[:queries].tolist()]
    kept = [train[n] for n in rng.permutation(len(train))[: examples - len(chosen)].tolist()]
    every = [*kept, *chosen]
    return [every[n] for n in rng.permutation(len(every)).tolist()], chosen


def measured(run: Run, queries: Sequence[Example], projection: int) -> str:
    """The table of `measure`."""
    variants = {"the same text": list(queries), "without one word": [_shorter(query) for query in queries]}
    rows: list[Sequence[str]] = [("query", "label", "similarity", "found first", "in the first 5", "time")]
    for similarity in SIMILARITIES:
        finder = TrainingExamples(run, similarity, projection)
        ids = [own[0].example.id for own in pieces(finder.train)]
        places = [ids.index(query.id) for query in queries]
        for name, asked in variants.items():
            for label in ("its own", "predicted"):
                began = time.perf_counter()
                found = finder.queries(asked, [query.output if label == "its own" else None for query in asked])
                scores = finder.scores(found)
                ranks = [int(np.sum(own > own[place])) for own, place in zip(scores, places, strict=True)]
                shares = [f"{np.mean(np.array(ranks) < most):.1%}" for most in (1, 5)]
                rows.append((name, label, similarity, *shares, f"{time.perf_counter() - began:.1f} s"))
    return "\n".join(aligned(rows))


def _shorter(query: Example) -> Example:
    """The query without its middle word."""
    words = words_of(query.instruction)
    return without(query, [words[len(words) // 2]])


if __name__ == "__main__":
    main()
