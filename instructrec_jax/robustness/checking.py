"""`evaluate --robust`: reads a suite, runs it, writes robustness.json and prints the table."""

import sys
from dataclasses import replace
from pathlib import Path

from instructrec_jax.data.data_config import Split
from instructrec_jax.distributed.launch import say
from instructrec_jax.evaluation.behavior import Behavior
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.files import write_json
from instructrec_jax.robustness.adversarial import Search
from instructrec_jax.robustness.checklist import checklist_behavior
from instructrec_jax.robustness.expectations import NotForThisRun
from instructrec_jax.robustness.running import Examiner, behavior_of
from instructrec_jax.robustness.shown import format_behavior, over_limit
from instructrec_jax.robustness.suite import BIAS, Suite, read_suite, shipped_suite, suite_of_package
from instructrec_jax.runs.run import Run

DEFAULT, CHECKLIST = "default", "checklist:"


def check_suite(suite: str, limit: float | None) -> None:
    """Raises ValueError for a suite that cannot be read, before a long evaluation. Arguments as those of `checked`."""
    if limit is not None and not 0 <= limit <= 1:
        raise ValueError(f"--robust_limit is a share from 0 to 1, but is {limit:g}.")
    if suite not in (DEFAULT, BIAS) and not suite.startswith(CHECKLIST):
        read_suite(Path(suite), "en")


def checked(run: Run, suite: str, split: Split, out: Path, folder: Path, limit: float | None) -> list[str]:
    """Tests a run, prints the table, and writes robustness.json and report.html into `folder`.

    Args:
      suite: default, bias, a YAML file, or checklist:FOLDER.
      out: for predictions of CheckList's released texts.
      limit: largest failure rate of a test; None: that of the suite.

    Returns a line for each test above its limit.
    """
    check_suite(suite, limit)
    found = behavior(run, suite, split, out, limit)
    if isinstance(found, Path):
        say(f"\nwritten: {found}, for `suite.run_from_file` of CheckList, which counts the failures", sys.stdout)
        return []
    write_json(folder / "robustness.json", found)
    report = write_report(folder)
    say(f"\n{format_behavior(found, more=str(report))}\n\nwritten: {folder / 'robustness.json'}, {report}", sys.stdout)
    return over_limit(found)


def behavior(run: Run, suite: str, split: Split, out: Path, limit: float | None = None) -> Behavior | Path:
    """The results of a suite, as `checked`; of CheckList's released texts, the file of predictions."""
    if suite.startswith(CHECKLIST):
        return checklist_behavior(Examiner(run, split, 1, 0), Path(suite.removeprefix(CHECKLIST)), out, limit)
    first = None if suite in (DEFAULT, BIAS) else read_suite(Path(suite), "en")
    examiner = Examiner(run, split, 500 if first is None else first.examples, 0 if first is None else first.seed)
    if suite == BIAS:
        chosen = suite_of_package(BIAS, examiner.language)
    elif first is None:
        chosen = default_suite(run, examiner)
    else:
        chosen = read_suite(Path(suite), examiner.language)
    found = behavior_of(examiner, chosen, limit)
    if chosen.adversarial is not None:
        try:
            found["adversarial"] = Search(examiner, chosen.adversarial, chosen.seed).run()
        except NotForThisRun as error:
            found["left_out"].append({"name": "adversarial search", "why": str(error)})
    return found


def default_suite(run: Run, examiner: Examiner) -> Suite:
    """The shipped suite of the run's task and language; of a multitask run, those of its subtasks, joined."""
    parts = getattr(run.config.task, "tasks", None)
    if parts is None:
        return shipped_suite(run.kind, examiner.language)
    tests = []
    for part in parts:
        suite = shipped_suite(part.task.name, examiner.language)
        tests += [replace(test, name=f"{part.name}: {test.name}", task=part.name) for test in suite.tests]
    return Suite("default", tuple(tests))
