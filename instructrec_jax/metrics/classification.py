"""Classification metrics, single-label and multi-label: thin wrappers of scikit-learn.

Macro averages are over the labels that occur in the targets or the predictions (scikit-learn's rule); a label without a
true or a predicted case scores 0, and the report names it.

A case with several highest scores predicts each of these labels with an equal share (`Guesses`), not the label listed
first: a classifier with equal scores for all labels gets the value of random guessing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from instructrec_jax.metrics.bootstrap import CorpusMetric

Report = dict[str, float | dict[str, float]]  # by label or average: precision, recall, f1-score, support


@dataclass(frozen=True)
class Guesses:
    """Single-label predictions from scores, with ties divided equally.

    Attributes:
      case, label: int64 [guesses]: a guess is a label with the highest score of a case. Cases are in order.
      share: float64 [guesses]: 1 ÷ number of labels with the highest score of the case.
    """

    case: np.ndarray
    label: np.ndarray
    share: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """The label shown for each case, int64 [cases]: the first of equal labels."""
        return self.label[np.searchsorted(self.case, np.arange(self.case[-1] + 1))]

    def right(self, targets: np.ndarray) -> np.ndarray:
        """Expected accuracy of each case, float64 [cases]; targets: label numbers int [cases]."""
        return np.bincount(self.case, self.share * (self.label == targets[self.case]))


def guesses(scores: ArrayLike) -> Guesses:
    """The labels with the highest score of each case; scores: float [cases, labels], without NaN."""
    values = np.asarray(scores)
    case, label = np.nonzero(values == values.max(-1, keepdims=True))
    return Guesses(case, label, 1 / np.bincount(case)[case])


def resampled_macro_f1(targets: ArrayLike, found: Guesses) -> CorpusMetric:
    """Macro F1 on resamples of the cases, over the labels that occur in them; targets: label numbers int [cases]."""
    truth = np.asarray(targets, np.int64)
    size = 1 + int(max(truth.max(), found.label.max()))

    def value(drawn: np.ndarray) -> float:
        times = np.bincount(drawn, minlength=len(truth)).astype(float)
        weight = found.share * times[found.case]
        hits = np.bincount(found.label, weight * (found.label == truth[found.case]), size)
        total = np.bincount(found.label, weight, size) + np.bincount(truth, times, size)  # predicted + true cases
        return float(np.mean(2 * hits[total > 0] / total[total > 0]))

    return CorpusMetric(value, len(truth))


def resampled_multilabel_f1(targets: ArrayLike, predictions: ArrayLike) -> dict[str, CorpusMetric]:
    """ "macro_f1" and "micro_f1" on resamples of the cases; targets, predictions: 0/1 [cases, labels]."""
    truth, guess = np.asarray(targets, np.int64), np.asarray(predictions, np.int64)
    hits, named = truth * guess, truth + guess
    return {
        "macro_f1": _f1_of_counts(hits, named, empty=1.0),
        "micro_f1": _f1_of_counts(hits.sum(1, keepdims=True), named.sum(1, keepdims=True), empty=1.0),
    }


def resampled_token_f1(
    targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], labels: Sequence[str]
) -> CorpusMetric:
    """Macro F1 over tokens, on resamples of the texts; targets, predictions: the labels of each text's tokens."""
    number = {label: place for place, label in enumerate(labels)}
    hits, named = (np.zeros((len(targets), len(labels)), np.int64) for _ in range(2))
    for row, (truth, guess) in enumerate(zip(targets, predictions, strict=True)):
        for true, guessed in zip(truth, guess, strict=True):
            hits[row, number[true]] += true == guessed
            named[row, number[true]] += 1
            named[row, number[guessed]] += 1
    return _f1_of_counts(hits, named, empty=0.0)


def _f1_of_counts(hits: np.ndarray, named: np.ndarray, *, empty: float) -> CorpusMetric:
    """The mean F1 of the labels that occur, 2 hits / named.

    Args:
      hits, named: int64 [cases, labels]: correct predictions of a label, and predictions plus true cases of it.
      empty: the value if no label occurs.
    """

    def value(drawn: np.ndarray) -> float:
        times = np.bincount(drawn, minlength=len(hits))
        right, total = times @ hits, times @ named
        there = total > 0
        return float(np.mean(2 * right[there] / total[there])) if there.any() else empty

    return CorpusMetric(value, len(hits))


def classification_metrics(
    targets: Sequence[str],
    predictions: Sequence[str],
    labels: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """{"accuracy", "macro_f1", "micro_f1"} of single-label predictions.

    targets, predictions: label names [cases]. labels: the known names; None: the names that occur. weights: float
    [cases], such as the shares of `Guesses`. Micro F1 of single-label data equals accuracy. Raises ValueError for an
    unknown label.
    """
    from sklearn import metrics as sk

    used = _check_single(targets, predictions, labels)
    shared = {"labels": used, "zero_division": 0, "sample_weight": weights}
    return {
        "accuracy": float(sk.accuracy_score(targets, predictions, sample_weight=weights)),
        "macro_f1": float(sk.f1_score(targets, predictions, average="macro", **shared)),
        "micro_f1": float(sk.f1_score(targets, predictions, average="micro", **shared)),
    }


def classification_report(
    targets: Sequence[str],
    predictions: Sequence[str],
    labels: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
) -> tuple[Report, str]:
    """scikit-learn's per-label report (precision, recall, F1, support), a dict and a text; weights: float [cases]."""
    from sklearn import metrics as sk

    used = _check_single(targets, predictions, labels)
    shared = {"labels": used, "zero_division": 0, "sample_weight": weights}
    table = sk.classification_report(targets, predictions, output_dict=True, **shared)
    text = sk.classification_report(targets, predictions, digits=4, **shared)
    true, guessed = set(targets), set(predictions)
    return table, text + _name_empty([x for x in used if x not in guessed], [x for x in used if x not in true])


def confusion_matrix(
    targets: Sequence[str], predictions: Sequence[str], labels: Sequence[str], weights: np.ndarray | None = None
) -> np.ndarray:
    """Counts of cases, int [labels, labels]: rows are targets, columns predictions.

    weights: float [cases], such as the shares of `Guesses`; the counts are then float.
    """
    from sklearn import metrics as sk

    return sk.confusion_matrix(targets, predictions, labels=list(labels), sample_weight=weights)


def common_mistakes(counts: np.ndarray, labels: Sequence[str], most: int = 10) -> str:
    """The largest off-diagonal counts of a confusion matrix, one per line."""
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(place) // len(labels), int(place) % len(labels)) for place in largest]
    lines = [f"{wrong[row, column]:>6.4g} {labels[row]} predicted as {labels[column]}" for row, column in pairs]
    lines = [line for line, pair in zip(lines, pairs, strict=True) if wrong[pair]]
    return "\n".join(["Most frequent errors", *lines]) if lines else ""


def multilabel_metrics(targets: ArrayLike, predictions: ArrayLike, labels: Sequence[str]) -> dict[str, float]:
    """{"subset_accuracy", "macro_f1", "micro_f1", "sample_f1"} of multi-label predictions.

    targets, predictions: 0/1 [cases, labels]; labels: names of the columns. Subset accuracy counts exact matches of the
    label set; sample F1 is averaged over cases, and is 1 for a case without true and predicted labels.
    """
    from sklearn import metrics as sk

    truth, guess = _check_multi(targets, predictions, labels)
    columns = np.flatnonzero((truth | guess).any(axis=0))
    macro = sk.f1_score(truth[:, columns], guess[:, columns], average="macro", zero_division=0) if len(columns) else 1.0
    return {
        "subset_accuracy": float((truth == guess).all(axis=1).mean()),
        "macro_f1": float(macro),
        "micro_f1": float(sk.f1_score(truth, guess, average="micro", zero_division=1)),
        "sample_f1": float(sk.f1_score(truth, guess, average="samples", zero_division=1)),
    }


def multilabel_report(targets: ArrayLike, predictions: ArrayLike, labels: Sequence[str]) -> tuple[Report, str]:
    """scikit-learn's per-label report of 0/1 [cases, labels] arrays, a dict and a text; lists all labels."""
    from sklearn import metrics as sk

    truth, guess = _check_multi(targets, predictions, labels)
    shared = {"labels": list(range(len(labels))), "target_names": list(labels), "zero_division": 0}
    table = sk.classification_report(truth, guess, output_dict=True, **shared)
    text = sk.classification_report(truth, guess, digits=4, **shared)
    never_predicted = np.flatnonzero(truth.any(axis=0) & ~guess.any(axis=0)).tolist()
    never_true = np.flatnonzero(guess.any(axis=0) & ~truth.any(axis=0)).tolist()
    return table, text + _name_empty([labels[n] for n in never_predicted], [labels[n] for n in never_true])


def _check_single(targets: Sequence[str], predictions: Sequence[str], labels: Sequence[str] | None) -> list[str]:
    """The labels in use, in the order of `labels` (or sorted)."""
    if len(targets) != len(predictions) or not len(targets):
        raise ValueError(f"expected as many predictions as targets, got {len(predictions)} and {len(targets)}.")
    true, guessed = set(targets), set(predictions)
    if labels is not None and (unknown := sorted((true | guessed) - set(labels))):
        raise ValueError(f"unknown label {unknown[0]!r}; the labels are {', '.join(map(repr, labels))}.")
    return [x for x in labels if x in true | guessed] if labels is not None else sorted(true | guessed)


def _check_multi(targets: ArrayLike, predictions: ArrayLike, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    truth, guess = np.asarray(targets), np.asarray(predictions)
    if truth.shape != guess.shape or truth.ndim != 2 or truth.shape[1] != len(labels) or not len(truth):
        raise ValueError(
            f"multi-label targets and predictions must both be [cases, {len(labels)} labels], "
            f"got {truth.shape} and {guess.shape}."
        )
    for name, array in (("targets", truth), ("predictions", guess)):
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"multi-label {name} must hold only 0 and 1: threshold the scores first.")
    return truth.astype(bool), guess.astype(bool)


def _name_empty(never_predicted: Sequence[str], never_true: Sequence[str]) -> str:
    """A line each on the labels never predicted and never true, whose F1 counts as 0."""
    lines = []
    for what, names in (("predicted", never_predicted), ("in the targets", never_true)):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"never {what}, F1 counted as 0: {shown} ({len(names)} in total)\n")
    return "".join(lines)
