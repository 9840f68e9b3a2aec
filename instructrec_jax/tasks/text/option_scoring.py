"""Choosing one of several texts: listed candidates, the words for labels, or answers drawn beside the right one.

Shared by the tasks that choose by similarity and by likelihood.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.prompts import answer, render
from instructrec_jax.metrics.calibration import expected_calibration_error, reliability
from instructrec_jax.metrics.classification import (
    classification_metrics,
    classification_report,
    common_mistakes,
    confusion_matrix,
)
from instructrec_jax.metrics.ranking import concatenate, hit_rate, mrr, target_ranks
from instructrec_jax.tasks.base import Encoded, Scores, TaskConfig, owners_of, unless_unfit
from instructrec_jax.tasks.tfidf import fitted_tfidf

RECALLS = (2, 5)


@dataclass
class OptionsConfig(TaskConfig):
    """Settings of a task that chooses a text."""

    labels: list[str] = field(default_factory=list)  # candidates of every example; []: each example's own
    verbalisers: dict[str, str] = field(default_factory=dict)  # what is said for a label; others: name, _ as space
    negatives: int = 0  # answers of other examples drawn, by seed, as candidates for examples that list none

    def words(self, name: str) -> str:
        """What is said for a candidate: a text of an example's own is said as it is."""
        return self.verbalisers.get(name, name.replace("_", " ")) if self.labels else name

    @property
    def complete(self) -> bool:
        return bool(self.labels or self.negatives)

    @property
    def label_names(self) -> list[str]:
        return self.labels

    def learn(self, examples: Sequence[Example]) -> "OptionsConfig":
        """Labels, where no example lists candidates."""
        if any(e.candidates for e in examples):
            return self
        return replace(self, labels=sorted({said for e in examples if (said := answer(e)) is not None}))


@dataclass(frozen=True)
class Options:
    """What is chosen from.

    Attributes:
      names: of the candidates: labels, or the texts themselves.
      texts: what is said for each.
      right: which one is the answer.
      own: whether training is to tell the answer from these candidates (and not from the other answers of a batch).
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    right: int
    own: bool

    @property
    def said(self) -> str:
        """The text of the answer."""
        return self.texts[self.right]

    def texts_but(self, left_out: Sequence[str]) -> tuple[str, ...]:
        """The texts of all but some names; the answer's is always among them."""
        return tuple(
            text
            for number, (name, text) in enumerate(zip(self.names, self.texts, strict=True))
            if number == self.right or name not in left_out
        )


def check_options(config: OptionsConfig) -> None:
    if config.negatives < 0:
        raise ValueError(f"task.negatives should not be negative, but is {config.negatives}.")
    if config.labels and config.negatives:
        raise ValueError("task.labels are the candidates of every example, so task.negatives draws none: set one.")
    if len(set(config.labels)) != len(config.labels) or len(config.labels) == 1:
        raise ValueError(f"task.labels should be at least two different names, but are {config.labels}.")
    if unknown := sorted(set(config.verbalisers) - set(config.labels)):
        raise ValueError(f"task.verbalisers says {unknown[0]!r}, which is none of task.labels {config.labels}.")
    said = [config.words(label) for label in config.labels]
    if len(set(said)) != len(said):
        raise ValueError(f"the same is said for two labels, {said}: change task.verbalisers.")


def with_candidates(examples: Sequence[Example], config: OptionsConfig, seed: int) -> list[Example]:
    """The examples with candidates of their own, for those that need some: the right one and `negatives` drawn ones.

    They are drawn among the different answers of these examples, and shuffled. They stay with the example, so that
    whoever encodes it again (another run, on the same cases) has the same ones.
    """
    if not config.negatives:
        return list(examples)
    pool = sorted({said for e in examples if (said := answer(e)) is not None})
    made = []
    for number, example in enumerate(examples):
        said = answer(example)
        if example.candidates or said is None:
            made.append(example)
            continue
        if len(pool) <= config.negatives:
            raise ValueError(
                f"task.negatives is {config.negatives}, but these {len(examples)} examples have only {len(pool)} "
                "different answers: draw fewer."
            )
        rng = np.random.default_rng([seed, number])
        drawn = rng.choice(len(pool), config.negatives + 1, replace=False)
        others = [pool[i] for i in drawn if pool[i] != said][: config.negatives]
        listed = [said, *others]
        made.append(replace(example, candidates=tuple(listed[i] for i in permutation(len(listed), seed, number))))
    return made


def options_of(example: Example, name: str, config: OptionsConfig) -> Options:
    """Raises ValueError for an example without candidates, or whose answer is none of them."""
    said = answer(example)
    names = tuple(dict.fromkeys(config.labels or example.candidates))
    if len(names) < 2:
        raise ValueError(
            f"{name} has {len(names)} candidates: list them in its field candidates, name task.labels, or draw some "
            "with task.negatives."
        )
    if said not in names:
        listed = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        raise ValueError(f"{name}: its answer {said!r} is none of the candidates {listed}.")
    return Options(
        names,
        tuple(config.words(name) for name in names),
        names.index(said),
        own=bool(config.labels or not config.negatives),
    )


# ---------------------------------------------------------------- scores


def option_scores(
    encoded: Sequence[Encoded],
    options: Sequence[Options],
    logits: Sequence[np.ndarray],
    labels: Sequence[str],
    protocol: str,
) -> Scores:
    """Scores of choices.

    Args:
      logits: float [candidates] of each example. Their softmax is the confidence. Equal ones: every metric but macro F1
        is its mean over all orders of these, and the prediction is one of the best, drawn by the case's number. So it
        never matters where a file lists the answer.
      labels: where all examples choose among the same.
    """
    places, confidence = [], []
    records: list[dict[str, Any]] = []
    for number, (e, option, each) in enumerate(zip(encoded, options, logits, strict=True)):
        values = np.asarray(each, np.float64)
        shares = np.exp(values - values.max())
        shares /= shares.sum()
        places.append(target_ranks(values[None], [option.right]))
        best = np.flatnonzero(values == values.max())
        chosen = int(best[0] if len(best) == 1 else np.random.default_rng(number).choice(best))
        confidence.append(float(shares[chosen]))
        records.append(
            {
                "id": e.example.id,
                "input": render(e.example),
                "reference": option.names[option.right],
                "prediction": option.names[chosen],
                "score": confidence[-1],
                "candidates": {name: float(v) for name, v in zip(option.names, values, strict=True)},
            }
        )
    ranks, sizes = concatenate(places), np.array([len(option.names) for option in options])
    right = hit_rate(ranks, 1)
    cases = {"accuracy": right, "mrr": mrr(ranks, int(sizes.max()))}
    cases |= {f"recall@{k}": hit_rate(ranks, k) for k in RECALLS if k < sizes.min()}
    metrics = {name: float(values.mean()) for name, values in cases.items()}
    metrics["ece"] = expected_calibration_error(confidence, right)
    charts: dict[str, object] = {"calibration": {"bins": reliability(confidence, right)}}
    report = ""
    if labels:
        wanted, found = [r["reference"] for r in records], [r["prediction"] for r in records]
        metrics |= {"macro_f1": classification_metrics(wanted, found, labels)["macro_f1"]}
        counts = confusion_matrix(wanted, found, labels)
        charts["confusion"] = {"labels": list(labels), "counts": counts.tolist()}
        report = f"{classification_report(wanted, found, labels)[1]}\n{common_mistakes(counts, labels)}".rstrip()
    among = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    scores = Scores(metrics, cases, records, report, protocol=f"among {among} candidates, {protocol}", charts=charts)
    return scores.owned_by(owners_of([e.example for e in encoded]))


def shown_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """The three best candidates of a record, as `Task.shown` gives them."""
    best = sorted(record["candidates"].items(), key=lambda pair: (-pair[1], pair[0] != record["prediction"]))[:3]
    answers = [{"text": name, "score": value} for name, value in best]
    return {"instruction": record["input"], "wanted": record["reference"], "answers": answers}


def option_baselines(
    train: Sequence[Encoded],
    learnt: Sequence[Options],
    test: Sequence[Encoded],
    options: Sequence[Options],
    labels: Sequence[str],
) -> dict[str, Scores]:
    """Chance (what guessing gives on average), and the cosine of TF-IDF vectors of question and candidate.

    Args:
      learnt, options: of each example of `train`, and of `test`.
    """
    sizes = np.array([len(option.names) for option in options])
    chance = {"accuracy": 1 / sizes, "mrr": np.array([np.mean(1 / np.arange(1, n + 1)) for n in sizes])}
    chance |= {f"recall@{k}": k / sizes for k in RECALLS if k < sizes.min()}
    random = Scores({name: float(values.mean()) for name, values in chance.items()}, chance)
    return {
        "chance": random.owned_by(owners_of([e.example for e in test])),
        "TF-IDF cosine": unless_unfit(lambda: _tfidf_cosine(train, learnt, test, options, labels)),
    }


def _tfidf_cosine(
    train: Sequence[Encoded],
    learnt: Sequence[Options],
    test: Sequence[Encoded],
    options: Sequence[Options],
    labels: Sequence[str],
) -> Scores:
    vectorizer = fitted_tfidf([render(e.example) for e in train] + [option.said for option in learnt])
    texts = list(dict.fromkeys(text for option in options for text in option.texts))
    place = {text: number for number, text in enumerate(texts)}
    queries, candidates = vectorizer.transform([render(e.example) for e in test]), vectorizer.transform(texts)
    logits = [
        (candidates[[place[text] for text in option.texts]] @ queries[row].T).toarray()[:, 0]
        for row, option in enumerate(options)
    ]
    return option_scores(test, options, logits, labels, "TF-IDF")
