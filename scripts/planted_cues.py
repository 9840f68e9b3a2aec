"""Planted cues: which methods of `explain` rank the word first that alone decides the label.

    python scripts/planted_cues.py --out planted
    python scripts/planted_cues.py --backbone all-MiniLM-L6-v2 --out planted --learning_rate 5e-5 --seed 1

Texts are words drawn at random, which say nothing of the label. One of them is a cue, and each cue has a label of its
own. A network is tuned on such texts, and held-out texts with a cue are explained by each method. Two kinds of data:

    with "none"    a fifth of the texts has no cue, and the label "none": without its cue, a text has another label
    cues only      every text has a cue: what the network says of a text without one, it never learned

The table has the share of texts whose cue is ranked first, with a 95% interval (Wilson), and whether the method beats
random orders on the run's validation data, without which `explain --faithful` and reports leave it out.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from scipy import stats

from instructrec_jax.explanation.explain import Explainer, Explanation, methods_of
from instructrec_jax.explanation.faithfulness import faithfulness
from instructrec_jax.explanation.shown import NAMES
from instructrec_jax.files import read_jsonl, write_json, write_jsonl
from instructrec_jax.runs.config import load
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.objective import Choice
from instructrec_jax.train import train

CUES = {"copper": "north", "velvet": "south", "walnut": "east", "thunder": "west"}
FILLERS = "the a this that old new big small good bad bright dull film book song house tree about with for and".split()
KINDS = {'with "none"': 0.2, "cues only": 0.0}  # share of texts without a cue
COUNTS = {"train": 1600, "validation": 60, "test": 200}
BATCH = 16


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network = "HuggingFace folder of an encoder (default: films, the small network of the embedded demo)"
    parser.add_argument("--backbone", default="films", help=network)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data, runs and table; must not exist")
    parser.add_argument("--steps", type=int, default=300, help="updates of each run (default: 300)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="its peak (default: 1e-3)")
    parser.add_argument("--texts", type=int, default=COUNTS["test"], help="held-out texts (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of texts and training (default: 0)")
    options = parser.parse_args(args)
    if options.out.exists():
        raise SystemExit(f"planted_cues: {options.out} exists already: choose another --out.")
    found = {}
    for number, (kind, without) in enumerate(KINDS.items()):
        folder = options.out / str(number)
        counts = COUNTS | {"test": options.texts}
        files = {split: written(folder, split, count, without, options.seed) for split, count in counts.items()}
        run_dir = train(load(settings_of(options, files) | {"run_dir": str(folder / "run")}))
        found[kind] = measured(Run.open(run_dir), files["test"])
    write_json(options.out / "planted_cues.json", found)
    print(table(found))


def planted(count: int, without: float, rng: np.random.Generator) -> list[dict[str, str]]:
    """Texts of 8 to 16 words; `without`: share of those without a cue."""
    rows = []
    for _ in range(count):
        words, cue = list(map(str, rng.choice(FILLERS, rng.integers(8, 17)))), str(rng.choice(list(CUES)))
        if rng.random() < without:
            cue = ""
        else:
            words[rng.integers(len(words))] = cue
        rows.append({"instruction": " ".join(words), "output": CUES.get(cue, "none"), "cue": cue})
    return rows


def written(folder: Path, split: str, count: int, without: float, seed: int) -> Path:
    rng = np.random.default_rng([seed, *split.encode()])
    write_jsonl(folder / f"{split}.jsonl", planted(count, without, rng))
    return folder / f"{split}.jsonl"


def settings_of(options: argparse.Namespace, files: Mapping[str, Path]) -> dict[str, object]:
    return {
        "seed": options.seed,
        "steps": options.steps,
        "optimizer.learning_rate": options.learning_rate,
        "backbone.path": options.backbone,
        "task.type": "classification",
        "data.batch_size": BATCH,
        "data.max_length": 64,
        "evaluation.every": 0,
        **{f"data.{split}": [str(file)] for split, file in files.items()},
    }


class Measured(TypedDict):
    """Of a method: the share of texts whose cue is first with its interval, the texts, and whether it beats random."""

    first: tuple[float, float, float]
    texts: int
    beats_random: bool


def measured(run: Run, test: Path) -> dict[str, Measured]:
    rows = [row for row in read_jsonl(test) if row["cue"]]
    found = dict[str, Measured]()
    ways = {"": Explainer(run, methods_of(run)), " from the mean word": Explainer(run, ("integrated",), "mean")}
    for said, explainer in ways.items():
        explained = explainer.explain([str(row["instruction"]) for row in rows])
        shown = {row.method: row.beats_random for row in faithfulness(explainer, Choice(), COUNTS["validation"]).rows}
        for place, method in enumerate(explainer.methods):
            hits = first(explained[place :: len(explainer.methods)], [str(row["cue"]) for row in rows])
            interval = stats.binomtest(hits, len(rows)).proportion_ci(method="wilson")
            share = (hits / len(rows), float(interval.low), float(interval.high))
            found[NAMES[method] + said] = {"first": share, "texts": len(rows), "beats_random": shown[method]}
    return found


def first(explained: Sequence[Explanation], cues: Sequence[str]) -> int:
    """In how many texts the cue has the largest score."""
    scores = ([-np.inf if score is None else score for score in each.scores] for each in explained)
    best = [each.words[int(np.argmax(own))] for each, own in zip(explained, scores, strict=True)]
    return sum(word == cue for word, cue in zip(best, cues, strict=True))


def table(found: Mapping[str, Mapping[str, Measured]]) -> str:
    lines = ["| data | method | cue first | 95% | beats random |", "|---|---|---|---|---|"]
    for kind, methods in found.items():
        for name, each in methods.items():
            share, low, high = each["first"]
            beats = "yes" if each["beats_random"] else "no, left out"
            lines.append(f"| {kind} | {name} | {share:.1%} | {low:.1%} to {high:.1%} | {beats} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
