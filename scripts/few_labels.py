"""Few labels: ways to learn from few labeled texts, and from the rest without labels, over seeds.

    python scripts/few_labels.py my.yaml --labels 8 --seeds 0 1 2 3 4 --out runs/few_labels \\
        --augment '{delete: 0.1, swap: 0.1}' \\
        --way supervised '{}' --way fixmatch '{task.type: vector_classification, semi_supervised.method: fixmatch}'

Of the settings' data.train (without texts that are cases of data.validation or data.test), each seed keeps N random
examples of each label (--labels); the rest are data.unlabeled of the ways with a semi_supervised.method, with
`--augment` as what makes their strong views. All ways of a seed have the same network, seed, labeled examples, batch
size and number of steps, except where a way's settings or `--begin N` say otherwise: with it, all start from one
supervised run of N steps (init_from). Further `--a.b value` are settings of all ways. A finished run is not trained
again.

The score is `--metric` on data.test (`--split validation` to choose settings). Differences are from the first way,
paired by seed; their 95% intervals are Student's t over the seeds; of one seed there are none. A way that fits its head
has a row for its logistic head on the frozen vectors, too.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from ways import add_ways, cell, mapping, overrides, ways_of

from instructrec_jax.data.fingerprints import normalized
from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.prompts import answer, render
from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.runs.config import Config, load, to_dict
from instructrec_jax.runs.data import RunData
from instructrec_jax.train import train

FITTED, FROZEN = ("setfit", "vector_classification"), "logistic head on frozen vectors"


class Row(TypedDict):
    """A row of the results table."""

    name: str
    values: dict[str, float]


class Results(TypedDict):
    """evaluation.json."""

    rows: list[Row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file of settings")
    parser.add_argument("--labels", type=int, default=8, help="labeled examples of each label")
    parser.add_argument("--augment", default="{}", help="of data.unlabeled: what makes its strong views")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, required=True, help="folder of the splits and runs")
    parser.add_argument("--begin", type=int, default=0, help="supervised steps that both runs begin with")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="what is measured on")
    add_ways(parser)
    arguments, rest = parser.parse_known_args()
    common, ways = overrides(rest), ways_of(arguments.way)
    if not ways:
        raise SystemExit("name at least one --way, such as --way supervised '{}'.")
    base = load(arguments.config)
    views = mapping(arguments.augment, "--augment")
    rows: list[dict[str, float]] = []
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        labeled, unlabeled = divided(base, arguments.labels, seed, folder)
        few = {**to_dict(base), "data.train": [str(labeled)], "seed": seed, **common}
        if arguments.split == "validation":
            few["data.test"] = []
        if arguments.begin:
            how = {"steps": arguments.begin, "checkpoint.every": arguments.begin, "run_dir": str(folder / "begin")}
            scores(load(few | how), arguments.metric)
            few["init_from"] = str(folder / "begin")
        found: dict[str, float] = {}
        for name, own in ways.items():
            if "semi_supervised.method" in own:
                own = {"data.unlabeled": [{"path": str(unlabeled), "augment": views}], **own}
            config = load(few | own | {"run_dir": str(folder / name)})
            before, found[name] = scores(config, arguments.metric)
            if config.task.name in FITTED:
                found.setdefault(FROZEN, before)
        rows.append(found)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()), flush=True)
    print(table(rows))


def divided(config: Config, count: int, seed: int, folder: Path) -> tuple[Path, Path]:
    """Files of the labeled and of the unlabeled examples of a seed."""
    data = RunData(config)
    cases = {normalized(render(e)) for split in ("validation", "test") for e in data.examples(split)}
    examples = [e for e in data.examples("train") if normalized(render(e)) not in cases]
    labeled, unlabeled = [], []
    taken: Counter[str | None] = Counter()
    for number in permutation(len(examples), seed).tolist():
        example = examples[number]
        if taken[answer(example)] < count:
            taken[answer(example)] += 1
            labeled.append(example)
        else:
            unlabeled.append(example)
    if short := [label for label, own in taken.items() if own < count]:
        raise SystemExit(f"the label {short[0]!r} has fewer than {count} examples: lower --labels.")
    print(f"seed {seed}: {len(labeled):,} labeled, {len(unlabeled):,} unlabeled, {len(taken)} labels", flush=True)
    paths = folder / "labeled.jsonl", folder / "unlabeled.jsonl"
    for path, own_examples in zip(paths, (labeled, unlabeled), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [example.to_record() for example in own_examples])
    return paths


def scores(config: Config, metric: str) -> tuple[float, float]:
    """The metric before training and of the trained run."""
    results = Path(config.run_dir) / "evaluation.json"
    if not results.is_file():
        train(config)
    values = {row["name"]: row["values"] for row in read_json(results, Results)["rows"]}
    return float(values["before tuning"][metric]), float(values["after tuning"][metric])


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """Means, and the paired differences from the first way with their 95% intervals over seeds, in points."""
    first = [row[next(iter(row))] for row in rows]
    lines = ["| way | score, difference |", "|---|---|"]
    lines += [f"| {name} | {cell([row[name] for row in rows], first)} |" for name in rows[0]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
