"""What a classification run does not know, measured: calibration, prediction sets, other domains, abstention."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.answering.desk import read_requests
from instructrec_jax.answering.prediction_files import file_rows, pictures_of
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fingerprints import fingerprint
from instructrec_jax.data.rows import open_rows
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.launch import once, say
from instructrec_jax.evaluation.doubts import DoubtTable, Uncertainty, format_doubts
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.files import read_json, write_json
from instructrec_jax.metrics.abstention import selective_metrics
from instructrec_jax.metrics.calibration import Way
from instructrec_jax.metrics.classification import guesses
from instructrec_jax.metrics.conformal import SetKind, set_metrics
from instructrec_jax.metrics.out_of_domain import OF_LOGITS, SCORES, domain_metrics
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.runs.abstention import conformal_sets, uniforms
from instructrec_jax.runs.bucket import send
from instructrec_jax.runs.domain_scores import classification
from instructrec_jax.runs.kept_calibration import FILE, KeptCalibration
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.averaging import Judged
from instructrec_jax.tasks.base import Encoded, examples_of
from instructrec_jax.tasks.recalibration import fit_recalibration, quality
from instructrec_jax.tasks.text.classification import ClassificationTask, MultilabelTask
from instructrec_jax.tasks.text.text_config import ONE_LABEL

Domains = dict[str, dict[str, dict[str, list[float]]]]  # file -> score -> metric -> [value, low, high]
MOST_LABELS = 10  # labels of a table, those with the lowest coverage


# ---------------------------------------------------------------- calibration


def calibrate(run: Run, way: Way) -> KeptCalibration:
    """Fits a run's calibration on data.validation, and writes calibration.json, with which every verb answers then.

    Raises ValueError for another task, a HuggingFace folder, and as `fit_recalibration`.
    """
    if not run.trained:
        raise ValueError(f"--calibrate writes into a run directory, but {run.path} is not one.")
    if not run.config.evaluation.calibration:
        raise ValueError("--calibrate fits what evaluation.calibration switches off: leave out one of them.")
    task, kind = run.task, run.task.outputs_are
    if not isinstance(task, ClassificationTask | MultilabelTask) or kind is None:
        raise ValueError(
            f"--calibrate is for runs that give probabilities of labels ({', '.join(ONE_LABEL)}, multilabel), but "
            f"{run.path} was trained for the task {run.kind}."
        )
    cases = run.data.cases(task, "validation")
    if not cases:
        raise ValueError("--calibrate fits on data.validation, which lists no sources: set it.")
    with heartbeat(f"fitting the calibration on {len(cases):,} validation cases"):
        judged = task.judged(run.plain_predictor, cases)
        found = fit_recalibration(way, kind, judged, task.labels)
        after = task.judged(found.behind(run.plain_predictor), cases)
    kept: KeptCalibration = {
        "way": way,
        "labels": task.labels,
        "scale": list(found.scale),
        "bias": list(found.bias),
        "checkpoint": run.checkpoint,
        "weights": run.weights_digest(),
        "data": fingerprint(examples_of(cases)),
        "cases": len(cases),
        "before": quality(judged),
        "after": quality(Judged(after.outputs, judged.right)),
    }
    once(lambda: write_json(run.path / FILE, kept))
    return kept


def _calibration_table(kept: KeptCalibration) -> DoubtTable:
    scales = f"T = {1 / kept['scale'][0]:.4f}" if kept["way"] == "temperature" else "a scale and a bias for each label"
    before, after = kept["before"], kept["after"]
    rows = [
        ["log loss (nats)", f"{before['nll']:.4f}", f"{after['nll']:.4f}"],
        ["expected calibration error", f"{before['ece']:.4f}", f"{after['ece']:.4f}"],
    ]
    text = f"{scales}, fitted on {kept['cases']:,} cases of data.validation, on which these numbers are measured, too."
    return {"title": f"Calibration ({kept['way']})", "text": text, "rows": [["", "before", "after"], *rows]}


# ---------------------------------------------------------------- prediction sets


def measure_coverage(run: Run, cases: Sequence[Encoded], coverage: float, kind: SetKind) -> dict[str, object]:
    """How often the prediction sets of cases have the right label, see `metrics.conformal.set_metrics`."""
    task = classification(run, "--coverage")
    sets = conformal_sets(run, coverage, kind)
    chosen = sets(probabilities(task.outputs(run.predictor, cases)), uniforms(cases))
    found = set_metrics(chosen, task.truth(cases), task.labels)
    about = {"coverage": coverage, "sets": kind, "threshold": sets.threshold, "validation_cases": sets.cases}
    return {**about, **found}


def _coverage_table(found: dict[str, object]) -> DoubtTable:
    by_label = found["labels"]
    assert isinstance(by_label, dict) and isinstance(interval := found["interval"], list)
    lowest = sorted(by_label, key=lambda label: (by_label[label]["covered"], label))[:MOST_LABELS]
    rows = [
        ["all", f"{found['cases']:,}", f"{found['covered']:.3f}", f"{found['mean_size']:.2f}"],
        *(
            [label, f"{own['cases']:,}", f"{own['covered']:.3f}", f"{own['mean_size']:.2f}"]
            for label, own in ((label, by_label[label]) for label in lowest)
        ),
    ]
    text = (
        f"covered {found['covered']:.3f} (95% binomial interval {interval[0]:.3f} to {interval[1]:.3f}), wanted "
        f"{found['coverage']:g}; {found['singletons']:.1%} of the sets have one label, {found['empty']:.1%} none. "
        f"Threshold of {found['validation_cases']:,} validation cases. Below: the labels with the lowest coverage."
    )
    return {
        "title": f"Prediction sets ({found['sets']})",
        "text": text,
        "rows": [["label", "cases", "covered", "mean size"], *rows],
    }


# ---------------------------------------------------------------- other domains


def read_texts(run: Run, file: Path) -> list[Encoded]:
    """The texts of a file, encoded as a run reads them: the lines of .txt, else records with the run's columns.

    Raises BadExample for one that the run cannot read, and ValueError for a file without any.
    """
    asker = run.asker()
    examples: list[Example] = []
    if file.suffix == ".txt":
        examples = [asker.example(text, where) for where, text in _as_records(run, file)]
    else:
        rows, pictures = open_rows(str(file)), pictures_of(file, asker.images)
        for where, row in file_rows(rows, range(len(rows))):
            if isinstance(row, BadExample):
                raise row.at(where)
            examples.append(asker.example(row, where, rows.columns, pictures.of(where)))
    if not examples:
        raise ValueError(f"{file} has no texts.")
    return asker.encode(examples)[0]


def _as_records(run: Run, file: Path) -> list[tuple[str, Example]]:
    return [(where, Example(instruction=text)) for where, text in read_requests(str(file))]


def measure_domains(run: Run, cases: Sequence[Encoded], files: Sequence[Path]) -> Domains:
    """How well each score tells the cases from the texts of each file: file -> score -> metrics.

    An ensemble has the scores of logits only. Raises as `read_texts`.
    """
    task = classification(run, "--out_of_domain")
    names = OF_LOGITS if run.members else SCORES

    def scored(encoded: Sequence[Encoded]) -> dict[str, np.ndarray]:
        logits = task.outputs(run.predictor, encoded)
        return {name: run.domain_scores.score(name, encoded, logits) for name in names}

    others = {file: read_texts(run, file) for file in files}
    inside = scored(cases)
    found: Domains = {}
    for file, texts in others.items():
        with heartbeat(f"scoring {len(texts):,} texts of {file}"):
            outside = scored(texts)
            found[str(file)] = {name: domain_metrics(inside[name], outside[name]) for name in names}
    return found


def _domain_table(found: Domains, cases: int) -> DoubtTable:
    rows = [
        [file if number == 0 else "", score, *(_spread(each) for each in metrics.values())]
        for file, scores in found.items()
        for number, (score, metrics) in enumerate(scores.items())
    ]
    text = (
        f"{cases:,} cases against the texts of other files, with 95% bootstrap intervals. FPR@95TPR: the share of "
        "other texts that pass where 95% of the cases do (lower is better). AUPR: of finding the other texts."
    )
    return {"title": "Other domains", "text": text, "rows": [["file", "score", "AUROC", "FPR@95TPR", "AUPR"], *rows]}


def _spread(value: Sequence[float]) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


# ---------------------------------------------------------------- abstention


def measure_abstention(run: Run, cases: Sequence[Encoded]) -> dict[str, object] | None:
    """What the run's abstention gains on cases; None: it answers everything."""
    if run.abstention is None:
        return None
    task = classification(run, "abstain.score")
    logits = task.outputs(run.predictor, cases)
    right = guesses(probabilities(logits)).right(task.truth(cases))
    scores, _ = run.abstention.of(cases, logits)
    found = selective_metrics(scores, right, run.abstention.threshold)
    return {"score": run.abstention.score, "threshold": run.abstention.threshold, **found}


def _abstention_table(found: dict[str, object]) -> DoubtTable:
    names = {
        "answered": "share answered",
        "accuracy_answered": "accuracy of these",
        "accuracy": "accuracy of all",
        "aurc": "area under the risk-coverage curve",
        "aurc_of_errors_last": "the same, if errors had the lowest scores",
    }
    rows = [[name, "–" if found[key] is None else f"{found[key]:.4f}"] for key, name in names.items()]
    text = f"No label below {found['threshold']:.6g} of {found['score']}."
    return {"title": "Abstention", "text": text, "rows": [["", "value"], *rows]}


# ---------------------------------------------------------------- all of it


def report_uncertainty(run: Run, out: Path, options: Namespace, kept: KeptCalibration | None) -> Path:
    """Measures what the options of `evaluate` ask for; prints it, and writes uncertainty.json and the report.

    Returns the folder of the report: the run directory, or `out` of a HuggingFace folder.

    Args:
      kept: the calibration that was fitted now, if one was. One in use is written, too.
    """
    asked = options.coverage is not None or options.out_of_domain or run.config.abstain.score is not None
    folder = run.path if run.trained else out
    if kept is None and not asked:
        return folder
    found: Uncertainty = {"split": options.split, "tables": []}
    if kept is None and run.calibration is not None:  # fitted before, and what is measured now is measured with it
        kept = read_json(run.path / FILE, KeptCalibration)
    if kept is not None:
        found["calibration"] = dict(kept)
        found["tables"].append(_calibration_table(kept))
    if asked:
        cases = run.data.cases(run.task, options.split)
        if options.coverage is not None:
            found["coverage"] = covered = measure_coverage(run, cases, options.coverage, options.sets)
            found["tables"].append(_coverage_table(covered))
        if options.out_of_domain:
            found["out_of_domain"] = domains = measure_domains(run, cases, options.out_of_domain)
            found["tables"].append(_domain_table(domains, len(cases)))
        if (gained := measure_abstention(run, cases)) is not None:
            found["abstention"] = gained
            found["tables"].append(_abstention_table(gained))

    def write() -> None:
        write_json(folder / "uncertainty.json", found)
        say(f"\n{format_doubts(found['tables'])}\n\nwritten: {folder / 'uncertainty.json'}, {write_report(folder)}")

    once(write)
    send(run.path)
    return folder
