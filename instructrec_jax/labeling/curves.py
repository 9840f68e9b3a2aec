"""Simulated labeling from the command line: the data, the curves of all strategies and seeds, and their table."""

from argparse import Namespace
from dataclasses import asdict, dataclass, replace

import numpy as np

from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.prompts import render
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.evaluation.layout import aligned
from instructrec_jax.files import write_json
from instructrec_jax.labeling.simulate import Comparison, Curve, Plan, Texts, compare, learning_curve
from instructrec_jax.labeling.strategies import Strategy
from instructrec_jax.runs.config import Config, parse
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run, is_run, run_settings
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.tasks.text.text_config import ClassificationConfig


@dataclass(frozen=True)
class Simulated:
    """The curves by strategy, one for each seed, and the plan they follow."""

    plan: Plan
    curves: dict[Strategy, list[Curve]]
    score: float

    def rows(self) -> list[Comparison]:
        return compare(self.curves, self.score)


def simulated(options: Namespace, rest: list[str]) -> Simulated:
    """The learning curves of `options.strategy` and of random, on vectors of `options.path`.

    Raises ValueError as `Plan`, for another task than classification, and for pools without labels.
    """
    plan = Plan(options.first, options.batch, options.rounds, options.seeds)
    config = _settings(options, rest)
    if not isinstance(config.task, ClassificationConfig):
        raise ValueError(f"--simulate needs task.type classification, not {config.task.name}.")
    data = RunData(config)
    run = Run.open(options.path) if is_run(options.path) else Run.open(options.path, settings_of(str(options.path)))
    names = list(data.config.task.label_names or ())
    pool, test = (_texts(run, data.examples(split), names) for split in ("train", "test"))
    curves: dict[Strategy, list[Curve]] = {}
    for strategy in dict.fromkeys([*options.strategy, "random"]):
        curves[strategy] = [
            learning_curve(strategy, pool, test, len(names), plan, config.seed + seed) for seed in range(plan.seeds)
        ]
    return Simulated(plan, curves, options.reach)


def _settings(options: Namespace, rest: list[str]) -> Config:
    """The settings whose data.train is the pool."""
    if is_run(options.path):
        config = run_settings(options.path, rest)
        read = [SourceConfig(images=each.images, fields=each.fields, task=each.task) for each in config.data.train[:1]]
        pool = replace(read[0] if read else SourceConfig(), path=options.pool)  # with the columns of the run's data
        return replace(config, data=replace(config.data, train=[pool]))
    return parse(Config, ["--task.type", "classification", "--data.train", options.pool, *rest])


def _texts(run: Run, examples: Mixture, names: list[str]) -> Texts:
    number = {name: place for place, name in enumerate(names)}
    for example in examples:
        if example.output not in number:
            raise ValueError(
                f"{example.where}: --simulate needs labels that the pool has, but its is {example.output!r}."
            )
    labels = np.array([number[str(example.output)] for example in examples], np.int64)
    return Texts(run.encode([render(example) for example in examples]), labels)


def write_curves(found: Simulated, options: Namespace) -> None:
    """Prints the table; writes curves.json into --out."""
    print(shown(found))
    if options.out is not None:
        curves = {
            name: [
                {"labels": c.labels.tolist(), "accuracy": c.accuracy.tolist(), "kappa": c.kappa.tolist()} for c in own
            ]
            for name, own in found.curves.items()
        }
        rows = [asdict(row) for row in found.rows()]
        path = options.out / "curves.json"
        write_json(path, {"plan": asdict(found.plan), "score": found.score, "rows": rows, "curves": curves})
        print(f"written: {path}")


def shown(found: Simulated) -> str:
    """The table of strategies beside random."""
    plan, score = found.plan, f"{found.score:g}"
    table = [("", "area", "− random, 95%", f"labels to {score}", "saved, 95%", "stopped at", "accuracy lost")]
    for row in found.rows():
        gain = _interval(row.gain, "+.4f")
        reached = "not reached" if row.reached is None else f"{row.reached:,.0f}"
        saved = _interval(row.saved, ",.0f")
        stopped, lost = ("never", "") if row.stopped is None else (f"{row.stopped[0]:,.0f}", f"{row.stopped[1]:+.4f}")
        table.append((row.strategy, f"{row.area:.4f}", gain, reached, saved, stopped, lost))
    about = (
        f"accuracy of a logistic head on frozen vectors; {plan.first} random labels, then {plan.rounds} rounds of "
        f"{plan.batch}; {plan.seeds} seeds; intervals: Student's t over seeds, paired"
    )
    return "\n".join([about, *aligned(table)])


def _interval(found: tuple[float, float, float] | None, form: str) -> str:
    """A mean with its bounds, which one seed has not."""
    if found is None:
        return ""
    mean, low, high = (format(each, form) for each in found)
    return f"{mean} [{low}, {high}]" if np.isfinite(found[1]) else mean
