"""Compares an opened run with other runs, fusions, prompt variants and baselines on the same cases."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from instructrec_jax.answering.ensembles import alone_of, shown
from instructrec_jax.answering.grouping import columns_of, keep_groups, with_columns
from instructrec_jax.answering.next_command import next_command
from instructrec_jax.answering.ranker import (
    FusedRanker,
    Ranker,
    choose_fusion,
    chosen_fusion,
    keep_fusion,
    open_second,
    tune,
)
from instructrec_jax.answering.served import read_cases, served_scores
from instructrec_jax.data.data_config import Split
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.launch import once, say
from instructrec_jax.evaluation.evaluator import (
    MeasuredOn,
    ScoredRow,
    baseline_rows,
    greater_is_better,
    measured_on,
    score_row,
)
from instructrec_jax.evaluation.groups import Groups as Parts
from instructrec_jax.evaluation.groups import group_metrics, groups_by
from instructrec_jax.evaluation.mistakes import mistakes_of
from instructrec_jax.evaluation.prompt_variants import format_sensitivity, read_wordings, reworded, sensitivity
from instructrec_jax.evaluation.results import show_results
from instructrec_jax.evaluation.showcase import showcase
from instructrec_jax.files import write_json
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.runs.bucket import send
from instructrec_jax.runs.checkpoint_metric import chosen_metric
from instructrec_jax.runs.ensemble import read_ensemble
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.encoded_store import encode_again
from instructrec_jax.tasks.kinds import as_ranking
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores

Groups = Mapping[str, Sequence[Encoded]]


@dataclass(frozen=True)
class Beside:
    """The rows of the table beside the run's own.

    Attributes:
      runs: other runs, scored with their best checkpoints on the same cases, encoded by their own tasks.
      hybrids: runs or baselines whose scores are mixed with the run's, with a weight tuned on data.validation.
      rerankers: runs that rerank the `retrieve` best items, with a weight tuned on data.validation.
      prompts: prompt variants to evaluate the same cases with; see `evaluation.prompt_variants`.
      baselines: whether to score baselines, which need data.train.
      uncalibrated: whether to score the run without its calibration, too.
    """

    runs: Sequence[Path] = ()
    hybrids: Sequence[str] = ()
    rerankers: Sequence[Path] = ()
    retrieve: int = 100
    prompts: Sequence[str] = field(default_factory=tuple)
    baselines: bool = True
    uncalibrated: bool = False


def beside_of(options: Namespace, several: bool) -> Beside:
    """The rows that the options of the verb ask for. several: whether it evaluates an ensemble of runs."""
    return Beside(
        runs=options.beside,
        hybrids=options.hybrid,
        rerankers=options.rerank,
        retrieve=options.retrieve,
        prompts=read_wordings(options.wordings) if options.wordings else (),
        baselines=not options.no_baselines,
        uncalibrated=options.calibrate is not None and not several,
    )


def evaluate(
    run: Run | str | Path,
    out: str | Path,
    *,
    split: Split = "test",
    beside: Beside | None = None,
    by: Sequence[str] = (),
) -> list[ScoredRow]:
    """Scores a run on data.test or data.validation; writes evaluation.json and predictions.jsonl to `out`.

    Returns the rows of the table, the run's own first.

    Args:
      by: fields of the records whose values are also measured separately; see `evaluation.groups`.
    """
    run = with_columns(run if isinstance(run, Run) else Run.open(run), split, by)
    beside, out = beside or Beside(), Path(out)
    with heartbeat("reading the data"):
        cases = run.data.cases(run.task, split)
    if not cases:
        other = "validation" if split == "test" else "test"
        raise ValueError(f"data.{split} lists no sources to evaluate on. Set it, or use --split {other}.")
    groups = run.data.case_groups(cases)
    parts = groups_by(groups, by, partial(columns_of, run, split))
    tuned = "ensemble" if run.members else "tuned" if run.trained else "untuned"
    rows = [_scored(tuned, run.task, run.predictor, groups)]
    metric = run.config.evaluation.metric or run.task.metric
    if run.config.evaluation.metric is not None:
        chosen_metric({name: value for s in rows[0].scores.values() for name, value in s.metrics.items()}, metric)
    if beside.uncalibrated:
        rows.append(_scored("without calibration", run.task, run.plain_predictor, groups))
    rows += [*_members(run, groups), *(_other_run(path, groups) for path in beside.runs)]
    if not (beside.hybrids or beside.rerankers):
        rows += _served(run, groups)
    fusions = [(str(other), None) for other in beside.hybrids] + [(str(r), beside.retrieve) for r in beside.rerankers]
    if fusions:
        validation = run.data.cases(run.task, "validation")
        for other, k in fusions:
            with heartbeat(f"tuning and evaluating the fusion with {other}"):
                rows.append(_fused(Ranker(run), other, k, validation, groups))
    asked = [
        _scored(f"“{prompt}”", run.task, run.predictor, _asked_as(run.task, groups, prompt))
        for prompt in beside.prompts
    ]
    rows += asked
    if beside.baselines and run.config.data.train:
        with heartbeat("reading the training data for the baselines"):
            train = run.data.train(run.task)
        rows += _baselines(run.task, train, groups)
    said = _shown(run, out, split, rows, metric, parts)
    if asked:
        found = sensitivity(asked, metric, greater=greater_is_better(run.task, metric))
        once(lambda: write_json(out / "wordings.json", found))
        say("\n" + format_sensitivity(found), sys.stdout)
    send(run.path)
    say(f"\nwritten: {out}\n\n{said}\nNext         {next_command(run, cases)}", sys.stdout)
    return rows


def _shown(
    run: Run, out: Path, split: Split, rows: Sequence[ScoredRow], metric: str, parts: Mapping[str, Mapping[str, Parts]]
) -> str:
    """Writes and prints the table with the groups, which the run's report then has, too; returns the headline."""
    with heartbeat("computing metrics by group"):
        groups = group_metrics(run.task, rows[0].scores, parts, metric, rows[0].name)
    said = show_results(
        out,
        rows,
        [],
        metric=metric,
        tuned=rows[0].name,
        measured_on=measured_on(split, chose_checkpoint=_chose(run)),
        greater=greater_is_better(run.task, metric),
        more="evaluation.json",
        groups=groups,
    )
    if groups:
        once(lambda: keep_groups(run, split, out))
    return said


def _chose(run: Run) -> bool:
    """Whether the validation cases chose the checkpoint in use."""
    return run.trained and run.step is None and run.config.evaluation.every > 0


def compare_before_and_after(
    run: Run, before: Predict, train: Sequence[Encoded], groups: Groups, measured_on: MeasuredOn
) -> str:
    """The table at the end of training: the model before and after tuning, what `recommend` answers, and baselines,
    on the same cases.

    Returns the headline, to be printed last.
    """
    rows = [
        _scored("before tuning", run.task, before, groups),
        _scored("after tuning", run.task, run.predictor, groups),
        *_served(run, groups),
        *_baselines(run.task, train, groups),
    ]
    with heartbeat("answering the examples"):
        examples = showcase(run.task, run.predictor, groups)
    metric = run.config.evaluation.metric or run.task.metric
    greater = greater_is_better(run.task, metric)
    return show_results(
        run.path,
        rows,
        examples,
        metric=metric,
        measured_on=measured_on,
        greater=greater,
        mistakes=mistakes_of(rows[1].scores, groups),
    )


def _scored(name: str, task: Task, predict: Predict, groups: Groups) -> ScoredRow:
    """`score_row` with signs of life."""
    with heartbeat(f"evaluating {name} on {sum(map(len, groups.values())):,} cases"):
        return score_row(name, task, predict, groups)


def _baselines(task: Task, train: Sequence[Encoded], groups: Groups) -> list[ScoredRow]:
    """`baseline_rows` with signs of life."""
    with heartbeat(f"fitting and evaluating baselines on {len(train):,} training examples"):
        return baseline_rows(task, train, groups)


def _other_run(path: Path, groups: Groups) -> ScoredRow:
    """Another run on the same cases, encoded by its own task."""
    other = Run.open(path)
    same = {name: encode_again(other.task, cases) for name, cases in groups.items()}
    if [len(cases) for cases in same.values()] != [len(cases) for cases in groups.values()]:
        raise ValueError(
            f"{path} drops cases longer than its data.max_length, so it cannot be compared on the same cases."
        )
    return _scored(path.name, other.task, other.predictor, same)


def _members(run: Run, groups: Groups) -> list[ScoredRow]:
    """The members of an ensemble, each as it is alone, and their mean."""
    if not run.members:
        return []
    kept = read_ensemble(run.path)
    if kept is not None:
        say(shown(kept), sys.stdout)
    found = []
    for number, member in enumerate(run.members):
        alone = alone_of(run, number)
        found.append(_scored(f"{member.path.name} ({number + 1})", run.task, alone, groups))
    return [*found, mean_row("mean member", found)]


def mean_row(name: str, rows: Sequence[ScoredRow]) -> ScoredRow:
    """What a member of an ensemble scores in the mean, case by case."""

    def mean(scores: Sequence[Scores]) -> Scores:
        def of_corpus(metric: str) -> CorpusMetric:
            each = [one.corpus[metric] for one in scores]
            return CorpusMetric(lambda drawn: float(np.mean([one.value(drawn) for one in each])), each[0].cases)

        first = scores[0]
        return replace(
            Scores({metric: float(np.mean([one.metrics[metric] for one in scores])) for metric in first.metrics}),
            cases={metric: np.mean([one.cases[metric] for one in scores], 0) for metric in first.cases},
            corpus={metric: of_corpus(metric) for metric in first.corpus},
            owners=first.owners,
            main=first.main,
        )

    groups = rows[0].scores
    return ScoredRow(name, {group: mean([row.scores[group] for row in rows]) for group in groups})


def _asked_as(task: Task, groups: Groups, prompt: str) -> Groups:
    """The same cases with another instruction."""
    change = partial(reworded, wording=prompt)
    asked = {name: encode_again(task, cases, change) for name, cases in groups.items()}
    if [len(cases) for cases in asked.values()] != [len(cases) for cases in groups.values()]:
        raise ValueError(f"some cases with the prompt {prompt!r} are longer than data.max_length: raise it.")
    return asked


def _fused(first: Ranker, name: str, k: int | None, validation: Sequence[Encoded], groups: Groups) -> ScoredRow:
    """A hybrid (k None) or two-stage ranking with another ranker; writes the tuned weight to the run directory."""
    second = open_second(first, name, reranks=k is not None)
    fusion = tune(first, second, name, validation, k, "data.validation")
    keep_fusion(first, second, fusion, len(validation))
    return _fused_row(FusedRanker(first, second, fusion), groups)


def _fused_row(fused: FusedRanker, groups: Groups) -> ScoredRow:
    scores, (name, k) = {}, (fused.fusion.name, fused.fusion.k)
    for group, cases in groups.items():
        others = fused.second.encode([e.example for e in cases])

        def block_scores(
            block: slice, cases: Sequence[Encoded] = cases, others: Sequence[Encoded] = others
        ) -> np.ndarray:
            return fused.scores(cases[block], others[block], [e.target.seen for e in cases[block]])

        scores[group] = fused.first.task.score_with(block_scores, cases)
    how = f"hybrid with {Path(name).name}" if k is None else f"{k} best reranked by {Path(name).name}"
    return ScoredRow(f"{how} (weight {fused.fusion.weight:.2f})", scores)


def _served(run: Run, groups: Groups) -> list[ScoredRow]:
    """What `recommend` answers with: the hybrid that training chose, and conditions read out of the requests' words,
    where any case has some; the last row is what is served.

    Not of a run that writes codes: under conditions it searches other items, which scores of all items do not show.
    """
    task = as_ranking(run.task)
    if task is None or not task.retrieves:
        return []
    fused = chosen_of(run)
    rows = [] if fused is None else [_fused_row(fused, groups)]
    first = Ranker(run) if fused is None else fused.first
    with heartbeat("reading conditions out of the requests"):
        readings = {group: read_cases(first, cases) for group, cases in groups.items()}
        scored = first.has_vectors or bool(run.members)
        if scored and any(reading.conditional for own in readings.values() for reading in own):
            scores = {
                group: task.score_with(served_scores(first, fused, cases, readings[group]), cases)
                for group, cases in groups.items()
            }
            rows.append(ScoredRow(" and ".join([*(row.name for row in rows), "conditions in words"]), scores))
    return [*rows[:-1], *(replace(row, served=True) for row in rows[-1:])]


def chosen_of(run: Run) -> FusedRanker | None:
    """The hybrid that training chose for a ranker; see `answering.ranker.chosen_fusion`."""
    return None if as_ranking(run.task) is None else chosen_fusion(Ranker(run))


def fuse(run: Run, validation: Sequence[Encoded]) -> None:
    """After training: chooses the hybrid of a ranker of a whole catalogue (`evaluation.fuse`)."""
    task = as_ranking(run.task)
    if task is None or not (task.retrieves and validation and run.config.evaluation.fuse):
        return
    with heartbeat("tuning hybrids with baselines on data.validation"):
        choose_fusion(Ranker(run), validation)
