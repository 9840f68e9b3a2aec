"""The table of a search: its trials, from the best to the worst, and what to do with the best one."""

from pathlib import Path

from instructrec_jax.evaluation.layout import aligned
from instructrec_jax.evaluation.tables import digits
from instructrec_jax.files import write_text
from instructrec_jax.runs.config import Config, to_yaml
from instructrec_jax.tuning.search import Found, said
from instructrec_jax.tuning.space import with_settings
from instructrec_jax.tuning.trials import Trial, run_of


def table_of(found: Found) -> list[tuple[str, ...]]:
    """A header, and a row for each trial."""
    order = {"finished": 0, "stopped": 1, "failed": 2}

    def place(trial: Trial) -> tuple[int, float]:
        value = found.value(trial) if trial.evaluations else 0.0
        return order[trial.state], -value if found.greater else value

    rows: list[tuple[str, ...]] = [("trial", found.metric, "step", "seconds", "")]
    for trial in sorted(found.trials, key=place):
        step, value = trial.best(greater=found.greater) if trial.evaluations else (0, float("nan"))
        state = "as given" if trial is found.given and trial.state == "finished" else trial.state
        cells = (f"{trial.number}: {said(trial.changes)}", digits(value), f"{step:,}", f"{trial.seconds:,.0f}")
        rows.append((*cells, "" if state == "finished" else state))
    return rows


def written(found: Found, config: Config, out: Path) -> str:
    """The table and the next command as text, after writing OUT/best.yaml and OUT/trials.md."""
    header, *rows = table_of(found)
    lines = [header, ("---",) * len(header), *rows]
    write_text(out / "trials.md", "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n")
    best = out / "best.yaml"
    write_text(best, to_yaml(with_settings(config, found.best.changes)))
    beside = ""
    if found.given is not None and found.given is not found.best:
        beside = f" (as given: {digits(found.value(found.given))})"
    return "\n".join(
        [
            *aligned([header, *rows]),
            f"Result       {found.metric} {digits(found.value(found.best))}{beside}, trial {found.best.number}",
            f"Measured on  data.validation, which chose it among {len(found.trials)}; the test data were not read",
            f"written      {best}, {out / 'trials.md'}; the run of the trial is {run_of(out, found.best.number)}",
            f"Next         python -m instructrec_jax.train {best} --run_dir NEW",
        ]
    )
