"""Leave one domain out: tuned on all domains but one, tested on that one, beside what was tuned on it.

    python scripts/leave_one_out.py configs/education.yaml --data data/pubmedqa data/legalbench data/arc --out runs/3
    python scripts/leave_one_out.py configs/law.yaml --data data/unfair_terms --by language --out runs/languages

A folder of --data has train.jsonl, validation.jsonl and test.jsonl. A domain is a task of their examples, or with --by
a value of their `origin`, such as a language. All runs take the settings of the config without what it holds out;
further settings are `--name value`. A finished run is not trained again. The table, on the test of each domain: tuned
on the others (out), on the domain itself (in), untuned, and baselines fitted on either. Differences are paired, with
95% intervals; *loss*: the first row is significantly worse.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ways import overrides

from instructrec_jax.answering.comparison import Beside, evaluate
from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.evaluator import baseline_rows, score_row
from instructrec_jax.evaluation.results import results_of
from instructrec_jax.evaluation.tables import Evaluation, digits, interval_of, signed, value_of, verdict
from instructrec_jax.files import read_jsonl, write_json, write_jsonl
from instructrec_jax.runs.config import load, to_dict
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train

SPLITS = ("train", "validation", "test")
plain = partial(re.sub, r"[^\w-]+", "_")  # a domain as the name of a folder
ALL = {f"data.hold_out.{kind}": list[str]() for kind in ("tasks", "templates", "labels")}  # nothing is held out


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file of settings")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of train, validation and test")
    parser.add_argument("--by", default="task", help="what a domain is: task (default), or a key of the origin")
    parser.add_argument("--out", type=Path, required=True, help="folder of splits, runs and table")
    options, rest = parser.parse_known_args(args)
    try:
        settings = to_dict(load(options.config)) | ALL | {"evaluation.segment_by": None} | overrides(rest)
        domains = divided(options.data, options.by, options.out / "data")
        tested = [name for name, files in domains.items() if "test" in files]
        found = {name: left_out(name, domains, settings, options.out) for name in tested}
    except (OSError, ValueError) as error:
        raise SystemExit(f"leave_one_out: {error}") from None
    write_json(options.out / "leave_one_out.json", found)
    print(table(found))


def divided(folders: Sequence[Path], by: str, out: Path) -> dict[str, dict[str, str]]:
    """domain -> split -> the file of its examples in `out`; a split without examples of the domain has none."""
    examples, domains = dict[tuple[str, str], list[dict[str, object]]](), dict[str, dict[str, str]]()
    for file in [folder / f"{split}.jsonl" for folder in folders for split in SPLITS]:
        for number, row in enumerate(read_jsonl(file), 1):
            example = Example.from_record(row)
            domain = example.task if by == "task" else example.origin.get(by, "")
            if not domain:
                raise ValueError(f"{file}, line {number} names no {by}: give its examples one, or choose another --by.")
            examples.setdefault((domain, file.stem), []).append(row)
    for (domain, split), rows in examples.items():
        file = out / plain(domain) / f"{split}.jsonl"
        if file.exists() and read_jsonl(file) != rows:
            raise ValueError(f"{file} has other examples, of which runs may have learned: choose another --out.")
        write_jsonl(file, rows)
        domains.setdefault(domain, {})[split] = str(file)
    if len(domains) < 2 or len({plain(domain) for domain in domains}) < len(domains):
        raise ValueError(f"expected two domains or more by {by}, with different names, found {sorted(domains)}.")
    return domains


def left_out(name: str, domains: dict[str, dict[str, str]], settings: dict[str, object], out: Path) -> Evaluation:
    """Trains on the others and on the domain itself; the table of both on its test."""
    others = [files for domain, files in domains.items() if domain != name]
    runs = {"out": tuned(others, domains[name]["test"], settings, out / f"without-{plain(name)}")}
    if "train" in domains[name]:
        runs["in"] = tuned([domains[name]], domains[name]["test"], settings, out / f"only-{plain(name)}")
    run = Run.open(runs["out"])
    beside = Beside(runs=[runs["in"]] if "in" in runs else [])
    first, *rest = evaluate(run, out / f"compared-{plain(name)}", beside=beside)
    groups = run.data.case_groups(run.data.cases(run.task, "test"))
    untuned = Run.open(run.config.backbone.path, replace(run.config, init_from=None))
    rows = [replace(first, name="tuned (out)"), *(replace(row, name="tuned (in)") for row in rest[: len(runs) - 1])]
    rows += [score_row("untuned", run.task, untuned.predictor, groups)]
    rows += [replace(row, name=f"{row.name} (out)") for row in rest[len(runs) - 1 :]]
    if "in" in runs:
        own = Run.open(runs["in"]).data.train(run.task)
        rows += [replace(row, name=f"{row.name} (in)") for row in baseline_rows(run.task, own, groups)]
    metric = run.config.evaluation.metric or run.task.metric
    return results_of(rows, metric=metric, measured_on="test", tuned="tuned (out)").evaluation


def tuned(sources: Sequence[dict[str, str]], test: str, settings: dict[str, object], run_dir: Path) -> Path:
    files = {f"data.{s}": [each[s] for each in sources if s in each] for s in SPLITS[:2]} | {"data.test": [test]}
    if not (run_dir / "evaluation.json").is_file():
        train(load(settings | files | {"run_dir": str(run_dir)}))
    return run_dir


def table(found: dict[str, Evaluation]) -> str:
    """A row for each domain and contender, on the metric that the differences are of."""
    lines = ["| tested on | | metric | value | 95% | tuned (out) − it | |", "|---|---|---|---|---|---|---|"]
    for domain, evaluation in found.items():
        differences = {d["name"].removeprefix("tuned (out) − "): d for d in evaluation["differences"] or []}
        metric = next((d["metric"] for d in differences.values()), (evaluation.get("metrics") or [""])[0])
        for row in evaluation["rows"] or []:
            cells = [domain, row["name"], metric, digits(value_of(row, metric)), interval_of(row, metric)]
            if (d := differences.get(row["name"])) is not None:
                cells.append(f"{signed(d['mean'])} [{signed(d['low'])}, {signed(d['high'])}]")
                cells.append("*loss*" if "worse" in verdict(d) else verdict(d).removesuffix(" (95%)"))
            lines.append(f"| {' | '.join(cells)} |" if d else f"| {' | '.join(cells)} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
