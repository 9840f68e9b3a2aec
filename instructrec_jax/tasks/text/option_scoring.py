"""Choosing one of several texts: listed candidates, label names, or randomly drawn answers.

Shared by the tasks that choose by similarity and by likelihood.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.prompts import answer, question, render, shown_input
from instructrec_jax.metrics.calibration import expected_calibration_error, reliability
from instructrec_jax.metrics.classification import (
    classification_metrics,
    classification_report,
    common_mistakes,
    confusion_matrix,
)
from instructrec_jax.metrics.ranking import concatenate, hit_rate, mrr, target_ranks
from instructrec_jax.tasks.answers import CaseRecord, ChoiceAnswer, Shown, ShownOutput
from instructrec_jax.tasks.base import Encoded, examples_of
from instructrec_jax.tasks.scores import Scores, owners_of, unless_unfit
from instructrec_jax.tasks.text.text_config import OptionsConfig
from instructrec_jax.tasks.tfidf import fitted_tfidf

RECALLS = (2, 5)


@storable
@dataclass(frozen=True)
class Options:
    """The candidates of an example.

    Attributes:
      names: labels, or the texts themselves.
      texts: the text of each candidate.
      right: index of the correct candidate.
      own: whether training uses these candidates as negatives, instead of the other answers of the batch.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    right: int
    own: bool

    @property
    def said(self) -> str:
        """The text of the correct candidate."""
        return self.texts[self.right]

    def texts_but(self, left_out: Sequence[str]) -> tuple[str, ...]:
        """The texts without those of the names `left_out`; always with the correct one."""
        return tuple(
            text
            for number, (name, text) in enumerate(zip(self.names, self.texts, strict=True))
            if number == self.right or name not in left_out
        )


def check_options(config: OptionsConfig) -> None:
    """Raises ValueError for settings out of range or in conflict."""
    if config.negatives < 0:
        raise ValueError(f"task.negatives should not be negative, but is {config.negatives}.")
    if config.labels and config.negatives:
        raise ValueError("task.labels and task.negatives both define the candidates of all examples: set one of them.")
    if len(set(config.labels)) != len(config.labels) or len(config.labels) == 1:
        raise ValueError(f"task.labels should be at least two different names, but are {config.labels}.")
    if unknown := sorted(set(config.verbalizers) - set(config.labels)):
        raise ValueError(f"task.verbalizers has {unknown[0]!r}, which is not one of task.labels {config.labels}.")
    texts = [config.words(label) for label in config.labels]
    if len(set(texts)) != len(texts):
        raise ValueError(f"two labels have the same text, {texts}: change task.verbalizers.")


def with_candidates(examples: Sequence[Example], config: OptionsConfig, seed: int) -> list[Example]:
    """The examples, each with candidates: its own, else its answer and `negatives` random answers, shuffled.

    These are drawn from the distinct answers of all examples. The example keeps them, so that another run on the same
    cases has the same candidates.

    Raises ValueError for too few distinct answers.
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
                "different answers: lower it."
            )
        rng = np.random.default_rng([seed, number])
        drawn = rng.choice(len(pool), config.negatives + 1, replace=False)
        others = [pool[i] for i in drawn if pool[i] != said][: config.negatives]
        listed = [said, *others]
        made.append(replace(example, candidates=tuple(listed[i] for i in permutation(len(listed), seed, number))))
    return made


def options_of(example: Example, name: str, config: OptionsConfig) -> Options:
    """The options of an example. Raises ValueError for fewer than two candidates, or an answer that is not one."""
    said = answer(example)
    names = tuple(dict.fromkeys(config.labels or example.candidates))
    if len(names) < 2:
        raise ValueError(
            f"{name} has {len(names)} candidates, but needs two: list them in its field candidates"
            + (
                "; task.negatives draws them from known targets only."
                if config.negatives
                else " (of a text cell, fields.separator makes a list), or set task.labels or task.negatives."
            )
        )
    if said not in names:
        listed = ", ".join(f"{each!r:.60}" for each in names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(f"{name}: its answer {said!r} is not one of its candidates: {listed}.")
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
    """Accuracy, MRR, recall and calibration of choices; macro F1 with labels.

    Args:
      logits: float [candidates] for each example; their softmax is the confidence. For tied logits, all metrics but
        macro F1 are means over all orders, and the prediction is drawn (seeded by the text) from the best, so that the
        order of candidates and cases in a file has no effect.
      labels: the labels, if all examples have the same candidates.
      protocol: how the logits were computed.
    """
    answers = Mapped(lambda *case: choices(*([part] for part in case))[0], encoded, options, logits)
    places = [
        target_ranks(np.asarray(each, np.float64)[None], [option.right])
        for option, each in zip(options, logits, strict=True)
    ]
    said = [(answer.probability, answer.choice) for answer in answers]
    confidence = [probability for probability, _ in said]
    records = Mapped(_record, encoded, options, answers)
    ranks, sizes = concatenate(places), np.array([len(option.names) for option in options])
    right = hit_rate(ranks, 1)
    cases = {"accuracy": right, "mrr": mrr(ranks, int(sizes.max()))}
    cases |= {f"recall@{k}": hit_rate(ranks, k) for k in RECALLS if k < sizes.min()}
    metrics = {name: float(values.mean()) for name, values in cases.items()}
    metrics["ece"] = expected_calibration_error(confidence, right)
    charts: dict[str, dict[str, object]] = {"calibration": {"bins": reliability(confidence, right)}}
    report = ""
    if labels:
        targets, found = [option.names[option.right] for option in options], [choice for _, choice in said]
        metrics |= {"macro_f1": classification_metrics(targets, found, labels)["macro_f1"]}
        counts = confusion_matrix(targets, found, labels)
        charts["confusion"] = {"labels": list(labels), "counts": counts.tolist()}
        report = f"{classification_report(targets, found, labels)[1]}\n{common_mistakes(counts, labels)}".rstrip()
    among = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    scores = Scores(metrics, cases, records, report, protocol=f"among {among} candidates, {protocol}", charts=charts)
    return scores.owned_by(owners_of(examples_of(encoded)))


def _record(e: Encoded, option: Options, answer: ChoiceAnswer) -> dict[str, object]:
    shown = {"id": e.example.id, "input": shown_input(e.example), "reference": option.names[option.right]}
    return shown | answer.to_record()


def choices(encoded: Sequence[Encoded], options: Sequence[Options], logits: Sequence[np.ndarray]) -> list[ChoiceAnswer]:
    """The candidates with the highest logits, see `option_scores`; of tied ones, one drawn by the text."""
    answers = []
    for e, option, each in zip(encoded, options, logits, strict=True):
        values = np.asarray(each, np.float64)
        if np.isnan(values).any():
            raise ValueError("the scores of candidates hold NaN: the model may have diverged.")
        best = sorted(np.flatnonzero(values == values.max()).tolist(), key=lambda i: option.names[i])
        drawn = 0 if len(best) == 1 else zlib.crc32(shown_input(e.example).encode("utf-8", "surrogatepass"))
        chosen = best[drawn % len(best)]
        scores = dict(zip(option.names, values.tolist(), strict=True))
        answers.append(ChoiceAnswer(option.names[chosen], float(scipy.special.softmax(values)[chosen]), scores))
    return answers


def without_answer(example: Example, config: OptionsConfig) -> Example:
    """See `Task.unanswered`: the first candidate, if there are any, in place of the answer."""
    listed = config.labels or example.candidates
    return replace(question(example), output=listed[0] if listed else None)


def shown_options(record: CaseRecord) -> Shown:
    """The three best candidates of a record, as `Task.shown` gives them."""
    best = sorted(record["candidates"].items(), key=lambda pair: (-pair[1], pair[0] != record["prediction"]))[:3]
    answers: list[ShownOutput] = [{"text": name, "score": value} for name, value in best]
    return {"instruction": record["input"], "wanted": record["reference"], "answers": answers}


def option_baselines(
    train: Sequence[Encoded],
    train_options: Sequence[Options],
    test: Sequence[Encoded],
    options: Sequence[Options],
    labels: Sequence[str],
) -> dict[str, Scores]:
    """Chance (the expectation of random choice), and the TF-IDF cosine of question and candidate.

    Args:
      train_options, options: the options of each example of `train` and of `test`.
    """
    sizes = np.array([len(option.names) for option in options])
    chance = {"accuracy": 1 / sizes, "mrr": np.array([np.mean(1 / np.arange(1, n + 1)) for n in sizes])}
    chance |= {f"recall@{k}": k / sizes for k in RECALLS if k < sizes.min()}
    random = Scores({name: float(values.mean()) for name, values in chance.items()}, chance)
    return {
        "chance": random.owned_by(owners_of([e.example for e in test])),
        "TF-IDF cosine": unless_unfit(lambda: _tfidf_cosine(train, train_options, test, options, labels)),
    }


def _tfidf_cosine(
    train: Sequence[Encoded],
    train_options: Sequence[Options],
    test: Sequence[Encoded],
    options: Sequence[Options],
    labels: Sequence[str],
) -> Scores:
    vectorizer = fitted_tfidf([render(e.example) for e in train] + [option.said for option in train_options])
    texts = list(dict.fromkeys(text for option in options for text in option.texts))
    place = {text: number for number, text in enumerate(texts)}
    queries, candidates = vectorizer.transform([render(e.example) for e in test]), vectorizer.transform(texts)
    logits = [
        (candidates[[place[text] for text in option.texts]] @ queries[row].T).toarray()[:, 0]
        for row, option in enumerate(options)
    ]
    return option_scores(test, options, logits, labels, "TF-IDF")
