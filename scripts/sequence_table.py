r"""A table of docs/results.md: ways to rank next items over seeds, beside the baselines of the same data.

    python scripts/sequence_table.py configs/movielens_sequence.yaml --seeds 0 1 2 --out runs/ml \
        --way 'sequence head' '{}' --way 'ids alone' '{task.text: false}' --into docs/results.md --table movielens

Each way is trained once for each seed (a finished run is not trained again), in OUT/WAY-SEED. The rows are the run
alone, and mixed with the baseline that training chose on validation cases (evaluation.fuse), as means over the seeds
with the lowest and the highest; baselines are the same for all seeds. Below are the differences of the first way from
the others, alone: paired bootstrap over users, 95% (scripts/compare_runs.py).

With --into, the table takes the place of what stands between the lines <!-- table: NAME --> and <!-- end of NAME -->.
Further `--a.b value` are settings of all ways.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from compare_runs import difference, group
from ways import add_ways, overrides, ways_of

from instructrec_jax.files import read_json, write_text
from instructrec_jax.runs.config import load, to_dict
from instructrec_jax.train import train

METRICS = ("NDCG@10", "HR@10")
ALONE, LEFT_OUT = "after tuning", ("before tuning", "random")


class Row(TypedDict):
    """A row of the results table."""

    name: str
    values: dict[str, float] | None  # None: not fitted


class Results(TypedDict):
    """evaluation.json."""

    rows: list[Row]


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file of settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--into", type=Path, help="a file with the table")
    parser.add_argument("--table", help="its name in that file")
    add_ways(parser)
    arguments, rest = parser.parse_known_args(args)
    if (arguments.into is None) != (arguments.table is None):
        raise SystemExit("--into FILE needs the name of a table, --table, and the other way round.")
    common, ways = overrides(rest), ways_of(arguments.way) or {"sequence head": {}}
    base = to_dict(load(arguments.config))
    runs: dict[str, list[Path]] = {}
    for seed in arguments.seeds:
        for way, settings in ways.items():
            run = arguments.out / f"{way.replace(' ', '_')}-{seed}"
            if not (run / "evaluation.json").is_file():
                train(load({**base, **common, **settings, "seed": seed, "run_dir": str(run)}))
            runs.setdefault(way, []).append(run)
    text = "\n".join([*rows_of(runs), "", *differences(runs)])
    print(text)
    if arguments.into is not None:
        put(arguments.into, arguments.table, text)


def rows_of(runs: Mapping[str, Sequence[Path]]) -> list[str]:
    """The table, best first."""
    cells: dict[str, list[dict[str, float]]] = {}
    for way, folders in runs.items():
        for folder in folders:
            for row in read_json(folder / "evaluation.json", Results)["rows"]:
                name = way if row["name"] == ALONE else re.sub(r"^hybrid with .*\)", f"{way}, mixed", row["name"])
                if name not in LEFT_OUT and row["values"] is not None:
                    cells.setdefault(name, []).append(row["values"])
    best = sorted(cells.items(), key=lambda item: -np.mean([values[METRICS[0]] for values in item[1]]))
    seeds = len(next(iter(runs.values())))
    head = [f"| {seeds} seed{'s' * (seeds > 1)} | {' | '.join(METRICS)} |", "|---" * (1 + len(METRICS)) + "|"]
    rows = [(name, *(over_seeds([value[metric] for value in values]) for metric in METRICS)) for name, values in best]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def over_seeds(values: Sequence[float]) -> str:
    """The mean, with the lowest and the highest where they differ."""
    low, mean, high = (f"{value:.4f}".lstrip("0") for value in (min(values), np.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def differences(runs: Mapping[str, Sequence[Path]]) -> list[str]:
    """Of the first way alone from the others alone, which have predictions of each case."""
    (first, own), *others = runs.items()
    lines = []
    for way, folders in others:
        mean, low, high = difference(group(own), group(folders))
        lines.append(f"{first} − {way}, NDCG@10: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    return lines


def put(file: Path, name: str, text: str) -> None:
    """Replaces a table of the file. Raises SystemExit where the file has no place for it."""
    place = re.compile(f"(<!-- table: {re.escape(name)} -->\n).*?(\n<!-- end of {re.escape(name)} -->)", re.DOTALL)
    whole, count = place.subn(lambda found: found[1] + text + found[2], file.read_text("utf-8"))
    if not count:
        raise SystemExit(f"{file} has no lines <!-- table: {name} --> and <!-- end of {name} -->.")
    write_text(file, whole)


if __name__ == "__main__":
    main()
