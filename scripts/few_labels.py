"""Few labels: supervised against semi-supervised training with equal steps, over seeds, with a paired interval.

    python scripts/few_labels.py my.yaml --labels 8 --seeds 0 1 2 3 4 --out runs/few_labels \
        --semi_supervised.method fixmatch --augment '{delete: 0.1, swap: 0.1}'

Of the settings' data.train (without texts that are cases of data.validation or data.test), each seed keeps N random
examples of each label (--labels); the rest become data.unlabeled. Both runs start from the same network with
the same seed, labeled examples, batch size and number of steps; with `--begin N` from the same supervised run of N
steps (init_from), so that the first pseudo-labels are not those of a new head. Further `--a.b value` are settings of
the semi-supervised run, `--both.a.b value` of both. A finished run is not trained again.

The score is `--metric` on data.test (`--split validation` to choose settings). The interval of the mean difference is
Student's t over the seeds; of one seed there is none.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from scipy import stats

from instructrec_jax.data.fingerprints import normalized
from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.prompts import answer, render
from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.parsing import parse_yaml
from instructrec_jax.runs.config import Config, load, to_dict
from instructrec_jax.runs.data import RunData
from instructrec_jax.train import train


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
    arguments, rest = parser.parse_known_args()
    both, own = overrides(rest)
    base = load(arguments.config)
    rows = []
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        labeled, unlabeled = divided(base, arguments.labels, seed, folder)
        source = {"path": str(unlabeled), "augment": parse_yaml(arguments.augment, "--augment")}
        found: dict[str, float] = {}
        few = {**to_dict(base), "data.train": [str(labeled)], "seed": seed, **both}
        if arguments.split == "validation":
            few["data.test"] = []
        if arguments.begin:
            how = {"steps": arguments.begin, "checkpoint.every": arguments.begin, "run_dir": str(folder / "begin")}
            found["begin"] = score(load(few | how), arguments.metric)
            few["init_from"] = str(folder / "begin")
        for name, more in {"supervised": {}, "semi_supervised": {"data.unlabeled": [source], **own}}.items():
            found[name] = score(load(few | more | {"run_dir": str(folder / name)}), arguments.metric)
        rows.append(found)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()), flush=True)
    print(table(rows))


def overrides(rest: Sequence[str]) -> tuple[dict[str, object], dict[str, object]]:
    """(settings of both runs, of the semi-supervised run) of pairs `--name value`."""
    both: dict[str, object] = {}
    own: dict[str, object] = {}
    if len(rest) % 2:
        raise SystemExit(f"settings are pairs `--name value`, but found {' '.join(rest)}.")
    for name, value in zip(rest[::2], rest[1::2], strict=True):
        if not name.startswith("--"):
            raise SystemExit(f"unexpected argument {name!r}: settings are `--name value`.")
        place = both if name.startswith("--both.") else own
        place[name.removeprefix("--").removeprefix("both.")] = parse_yaml(value, name)
    return both, own


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


def score(config: Config, metric: str) -> float:
    """The metric of the trained run."""
    results = Path(config.run_dir) / "evaluation.json"
    if not results.is_file():
        train(config)
    measured = read_json(results, Results)["rows"]
    return next(float(row["values"][metric]) for row in measured if row["name"] == "after tuning")


def table(rows: Sequence[dict[str, float]]) -> str:
    """Means, and the paired difference with its 95% interval over seeds."""
    lines = [f"{name}: {np.mean([row[name] for row in rows]):.4f}" for name in rows[0]]
    gain = np.array([row["semi_supervised"] - row["supervised"] for row in rows])
    line = f"difference {gain.mean():+.4f}"
    if len(gain) > 1:
        half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
        line += f", 95% interval {gain.mean() - half:+.4f} to {gain.mean() + half:+.4f} over {len(gain)} seeds"
    return "\n".join([*lines, line])


if __name__ == "__main__":
    main()
