"""Audit of a run's data: wrong labels, equal and nearly equal texts, and cases that training would see.

found = audit(config, AuditOptions(similarity=0.8))
found.findings          # what is wrong with which example
found.clean             # the numbers of the examples of data.train that stay
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from instructrec_jax.data.data_config import Split
from instructrec_jax.data.example import Example
from instructrec_jax.labeling.confident_learning import Rule, confident_joint, label_issues
from instructrec_jax.labeling.duplicates import clusters, near_duplicates
from instructrec_jax.labeling.findings import Finding, Kind, Rows, read_rows
from instructrec_jax.labeling.out_of_fold import Features, out_of_fold, tfidf_features, vector_features
from instructrec_jax.labeling.repeats import repeats
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.tasks.text.text_config import ClassificationConfig


@dataclass(frozen=True)
class AuditOptions:
    """How to audit.

    Attributes:
      features: of the classifier: "tfidf", or "vectors" of the texts by `backbone.path`; None: vectors if it is set.
      rule: see `confident_learning.label_issues`.
      folds: of the out-of-fold predictions.
      similarity: smallest Jaccard similarity of near-duplicates; 1: equal texts only.
      plant: share of labels to flip, to measure how many of them are found; 0: none.
    """

    features: Literal["tfidf", "vectors"] | None = None
    rule: Rule = "class"
    folds: int = 5
    similarity: float = 0.8
    plant: float = 0.0


@dataclass(frozen=True)
class Planted:
    """How many labels that were flipped at random are found.

    Labels that were wrong before count against the precision, which is therefore a lower bound.
    """

    seed: int
    flipped: int
    flagged: int
    found: int

    @property
    def recall(self) -> float:
        return self.found / self.flipped

    @property
    def precision(self) -> float:
        return self.found / max(1, self.flagged)


@dataclass(frozen=True)
class LabelAudit:
    """What confident learning says of the labels of data.train.

    Attributes:
      features: what the classifier reads.
      accuracy: share of examples whose most probable label, out of fold, is the given one.
      noise: estimated share of wrong labels: 1 − the trace of the joint.
      confused: (given label, label that is probably right, estimated number of examples), most first.
      planted: None: none were planted.
    """

    features: str
    accuracy: float
    noise: float
    confused: list[tuple[str, str, int]]
    planted: Planted | None = None


@dataclass(frozen=True)
class Audit:
    """The result of `audit`.

    Attributes:
      sizes: number of examples by split.
      examples: of data.train that stay.
      labels: None: they were not audited, `unaudited` says why.
    """

    sizes: Mapping[Split, int]
    findings: list[Finding]
    examples: list[Example]
    labels: LabelAudit | None
    unaudited: str = ""

    def of(self, kind: Kind) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]


def audit(config: Config, options: AuditOptions = AuditOptions()) -> Audit:  # noqa: B008
    """Audits data.train, beside data.validation and data.test where the settings list them.

    Raises ValueError as `read_rows`, `near_duplicates` and `out_of_fold`, and for an example without a label.
    """
    data = RunData(config)
    rows = read_rows(data)
    keys = list(dict.fromkeys(rows.keys))
    pairs = near_duplicates(keys, options.similarity)
    of_labels = isinstance(config.task, ClassificationConfig)
    findings, labels = repeats(rows, keys, pairs, of_labels), None
    if of_labels:
        number = {key: place for place, key in enumerate(keys)}
        group = clusters(len(keys), pairs)
        groups = np.array([group[number[key]] for key in rows.keys[: rows.splits.count("train")]])
        labels, wrong = _labels(data.config, rows, groups, options)
        findings += wrong
    elif options.plant:
        raise ValueError(f"--plant flips labels of task.type classification, not of {config.task.name}.")
    gone = {finding.number for finding in findings if finding.dropped}
    stay = [
        e
        for e, split, n in zip(rows.examples, rows.splits, rows.numbers, strict=True)
        if split == "train" and n not in gone
    ]
    why = "" if of_labels else f"labels are audited of task.type classification only, not of {config.task.name}"
    return Audit(dict(Counter(rows.splits)), findings, stay, labels, why)


def _labels(config: Config, rows: Rows, groups: np.ndarray, options: AuditOptions) -> tuple[LabelAudit, list[Finding]]:
    """groups: int64 [training examples], which near-duplicates share."""
    names, count = list(config.task.label_names or ()), len(groups)
    for example in rows.examples[:count]:
        if example.output is None:
            raise ValueError(f"{example.where}: the example has no label: audit labeled examples.")
    labels = np.array([names.index(rows.answer(row)) for row in range(count)], np.int64)
    features, called = _features(config, rows.texts[:count], options)

    def shares_of(given: np.ndarray) -> np.ndarray:
        return out_of_fold(features, given, groups, len(names), folds=options.folds, seed=config.seed)

    planted = None if not options.plant else _planted(labels, len(names), shares_of, options, config.seed)
    shares = shares_of(labels)
    best = shares.argmax(1)
    found = [
        replace(
            rows.finding("label", row, True),
            probability=float(shares[row, labels[row]]),
            suggested=names[best[row]],
            suggested_probability=float(shares[row, best[row]]),
        )
        for row in np.flatnonzero(label_issues(labels, shares, options.rule)).tolist()
    ]
    found.sort(key=lambda finding: finding.probability or 0.0)
    counts = confident_joint(labels, shares)
    off = counts * (1 - np.eye(len(names), dtype=np.int64))
    worst = np.argsort(-off, axis=None, kind="stable")[:20].tolist()
    confused = [(names[i], names[j], int(off[i, j])) for i, j in (divmod(at, len(names)) for at in worst) if off[i, j]]
    accuracy, noise = float((best == labels).mean()), float(off.sum() / counts.sum())
    return LabelAudit(called, accuracy, noise, confused, planted), found


def _features(config: Config, texts: Sequence[str], options: AuditOptions) -> tuple[Features, str]:
    """(the features, their name)."""
    path = config.backbone.path
    if options.features == "tfidf" or options.features is None and not path:
        return tfidf_features(texts), "TF-IDF of words"
    if not path:
        raise ValueError("--features vectors needs a backbone: set --backbone.path to a HuggingFace folder.")
    return vector_features(Run.open(path, settings_of(path)).encode(texts)), f"vectors of {path}"


def _planted(
    labels: np.ndarray, size: int, shares_of: Callable[[np.ndarray], np.ndarray], options: AuditOptions, seed: int
) -> Planted:
    given, flipped = planted_labels(labels, size, options.plant, seed)
    flagged = label_issues(given, shares_of(given), options.rule)
    return Planted(seed, int(flipped.sum()), int(flagged.sum()), int((flagged & flipped).sum()))


def planted_labels(labels: np.ndarray, size: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(the labels, of which a share is replaced by other ones at random; which ones, bool [n]).

    Raises ValueError for a share that is not below a half, or less than one label, and where there is one label only.
    """
    count = round(share * len(labels)) if 0 < share < 0.5 else 0
    if not count:
        raise ValueError(f"--plant should be a share of the labels below .5, of one label or more, but is {share}.")
    if size < 2:
        raise ValueError("--plant flips labels, but all examples have the same one.")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels), count, replace=False)
    given, flipped = labels.copy(), np.zeros(len(labels), bool)
    given[chosen] = (labels[chosen] + rng.integers(1, size, count)) % size
    flipped[chosen] = True
    return given, flipped
