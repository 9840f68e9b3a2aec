"""Base of the tasks that rank the items of a catalogue: settings, targets, evaluation and baselines."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.prompts import question, render
from instructrec_jax.data.storage import digest_of_texts
from instructrec_jax.ranking.baselines import (
    BM25,
    Baseline,
    CoOccurrence,
    Markov,
    Popularity,
    Random,
    counts_of,
)
from instructrec_jax.ranking.candidates import Asked, Candidates, candidates_for, check_protocol
from instructrec_jax.ranking.catalogue import Catalogue, Splits, has_splits
from instructrec_jax.ranking.evaluation import (
    BLOCK,
    Cases,
    Ranking,
    best_items,
    evaluate,
    evaluate_candidates,
    main_metric,
)
from instructrec_jax.ranking.fusion import retrieve
from instructrec_jax.ranking.index import products
from instructrec_jax.ranking.positions import position_report
from instructrec_jax.ranking.tuned_baselines import TUNED, tuned_fits
from instructrec_jax.tasks.answers import CaseRecord, ItemsAnswer, RankedItem, Shown
from instructrec_jax.tasks.averaging import Judged, OutputKind
from instructrec_jax.tasks.base import Encoded, Task, TaskContext, examples_of
from instructrec_jax.tasks.objective import Choice, NothingToExplain, Objective, contrast, refuse_word
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.ranking_config import RankingConfig
from instructrec_jax.tasks.ranking.reasons import asked_for, reason
from instructrec_jax.tasks.scores import Scores, owner_of, owners_of
from instructrec_jax.tasks.texts import rendered, tokenize

# of the origin
SEGMENTS = ("wording", "slice", "template_wording", "template", "form", "preference", "intention", "language")

NOTES = {"coKNN-source": "coKNN normalized by the popularity of the known item, not of the positive item."}
MOST_JUDGED = 10_000_000  # scores of each member by which weights are tuned
REMEMBERED = 8  # sets of cases whose candidates are cached, since several rankings are scored on the same cases


@storable
@dataclass(frozen=True)
class Target:
    """Positive items and history of a case, as numbers in the catalogue."""

    items: np.ndarray
    """int32, the positive items: one or several"""
    history: np.ndarray
    """int32, earlier items, oldest first"""

    @property
    def seen(self) -> np.ndarray:
        """The history items that are removed from the ranking, int32, in order of their numbers.

        Positive items stay: a repeated choice is a valid target.
        """
        return np.setdiff1d(self.history, self.items)


class RankingTask(Task):
    """Base of the tasks that score items: all of the catalogue, or given candidates."""

    outputs_are: OutputKind | None = "scores"
    has_vectors = True  # whether scores are inner products; other tasks implement `score_candidates`
    retrieves = True  # whether the whole catalogue can be ranked; else only given candidates
    reads_history = False  # whether the network reads the items of the history; else only the instruction

    def __init__(self, config: RankingConfig, context: TaskContext):
        self.config: Any = config
        self.context = context
        self.catalogue = Catalogue.load(config.catalogue) if context.catalogue is None else context.catalogue
        self.new_items = context.new_items  # items at the catalogue's end without training interactions
        self._fitted_baselines: dict[str, Baseline] = {}
        self._known: dict[int, tuple[Sequence[Encoded[Target]], Cases, list[Candidates]]] = {}
        if not config.protocols:
            raise ValueError("task.protocols is empty: list at least one, such as full or uni99.")
        for protocol in config.protocols:
            check_protocol(protocol)
        if not self.retrieves and "full" in config.protocols:
            raise ValueError(
                "task.protocols lists full, but this task scores only given candidates: use uni9, uni99, pop99, hard9, "
                "listed or a file with candidates."
            )
        self.metric = main_metric(config.cutoffs, config.protocols[0], len(self.catalogue))

    def tokenize(self, texts: Sequence[str], names: Sequence[str]) -> list[Text | None]:
        """Instructions or items' texts as the network reads them, see `tasks.texts.tokenize`."""
        return tokenize(texts, names, self.context)

    @cached_property
    def item_texts(self) -> list[Text]:
        """See `read_items`; the same objects each time."""
        return self.read_items()

    def read_items(self) -> list[Text]:
        """The tokens of each item's text."""
        names = [f"the text of item {item!r}" for item in self.catalogue.ids]
        texts = self.tokenize(self.catalogue.texts, names)
        if None in texts:
            raise ValueError("items that are too long cannot be dropped: set data.truncate to left or right.")
        return [text for text in texts if text is not None]

    def target(self, example: Example, name: str) -> Target:
        """The target of an example, which errors call `name`. Raises ValueError for invalid items."""
        positives = (example.output,) if isinstance(example.output, str) else example.output
        if not isinstance(positives, tuple) or not positives:
            raise ValueError(f"{name}: its output should be an item id or a list of them, but is {example.output!r}.")
        if len(set(positives)) < len(positives):
            raise ValueError(f"{name}: its output lists an item twice: {positives!r}.")
        try:
            numbers = self.catalogue.numbers([*positives, *example.history])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return Target(numbers[: len(positives)], numbers[len(positives) :])

    def encoding_depends_on(self) -> dict[str, object]:
        return {"catalogue": self.catalogue.fingerprint(), "titles": digest_of_texts(self.catalogue.titles)}

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The instruction's tokens and the `Target` of each example."""
        names = [f"the instruction of example {example.id or number!r}" for number, example in enumerate(examples)]
        texts = self.tokenize([render(example) for example in examples], names)
        return [
            Encoded(text, self.target(example, name), example)
            for example, text, name in zip(examples, texts, names, strict=True)
            if text is not None
        ]

    @cached_property
    def splits(self) -> Splits | None:
        """The interactions of all users, if the catalogue's folder has them."""
        return Splits.load(self.config.catalogue, self.catalogue) if has_splits(self.config.catalogue) else None

    @cached_property
    def popularity(self) -> np.ndarray:
        """float64 [items]: each item's share of the training interactions, with add-one smoothing."""
        counts = 1 + counts_of(self.splits.train if self.splits else [], len(self.catalogue))
        return counts / counts.sum()

    def explained_items(self, choice: Choice, predicted: Callable[[], int]) -> tuple[int, int | None]:
        """(number of the item to explain, number of the one it is contrasted with), by id or title; see `contrast`."""
        refuse_word(choice)

        def id_of(name: str | None) -> str | None:
            if name is None or name in self.catalogue.index or self.catalogue.titles.count(name) != 1:
                return name
            return self.catalogue.ids[self.catalogue.titles.index(name)]

        named = Choice(id_of(choice.target), id_of(choice.against))
        return contrast(named, self.catalogue.ids, predicted() if choice.target is None else 0, "item")

    def recommended(self, predict: Predict, encoded: Encoded[Target]) -> int:
        """The number of the item that the run answers with. Raises NothingToExplain where there is none."""
        (answer,) = self.answers(predict, [encoded], 1)
        if not answer.items:
            raise NothingToExplain("the run recommends no item here, because all are in the history: name a --target.")
        return self.catalogue.index[answer.items[0].id]

    def objective(self, items: tuple[int, int | None], weights: np.ndarray, unit: str) -> Objective:
        """An objective of one rendered text for `explained_items`."""
        names = [None if item is None else self.catalogue.titles[item] for item in items]
        return Objective(str(names[0]), names[1], unit, lambda _: weights, partial(rendered, self.context))

    # -------------------------------------------------------------- scores

    def item_vectors(self, predict: Predict) -> np.ndarray:
        """float32 [items, size]."""
        raise TypeError(f"{type(self).__name__} has no item_vectors().")

    def query_vectors(self, predict: Predict, encoded: Sequence[Encoded]) -> np.ndarray:
        """float32 [cases, size]: inner products with the items' vectors are the scores, higher is better."""
        raise TypeError(f"{type(self).__name__} has no query_vectors().")

    def score_items(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> Callable[[slice], np.ndarray]:
        """A function: slice of the cases -> scores, float32 [cases, items], higher is better."""
        items, queries = self.item_vectors(predict), self.query_vectors(predict, encoded)
        return lambda block: queries[block] @ items.T

    def score_candidates(
        self, predict: Predict, encoded: Sequence[Encoded[Target]], candidates: np.ndarray
    ) -> np.ndarray:
        """Scores of given items, float32 [cases, k] for item numbers int [cases, k], higher is better."""
        return products(self.query_vectors(predict, encoded), self.item_vectors(predict), candidates)

    def looks_like(self, predict: Predict, picture: Picture, name: str) -> np.ndarray:
        """float32 [items]: how much each item's picture is like another one, which errors call `name`.

        Cosines of the vectors of a network of images; −inf for an item without a picture.
        Raises ValueError for a task that reads no pictures of items, and for a picture that cannot be read.
        """
        raise ValueError(
            "this run reads no pictures of its items, so none can be like another picture: train it with task.pictures "
            "(sequence) or task.items (retrieval) on a catalogue with the column image."
        )

    def all_scores(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> Callable[[slice], np.ndarray]:
        """`score_items`; of an ensemble, the average over the items of the catalogue."""
        every = [self.score_items(each, encoded) for each in predict.each]
        if not predict.members:
            return every[0]
        return lambda block: np.stack(predict.averaged([score(block) for score in every]))

    def listed_scores(self, predict: Predict, encoded: Sequence[Encoded[Target]], candidates: np.ndarray) -> np.ndarray:
        """`score_candidates`; of an ensemble, the average over the distinct candidates of each case."""
        every = [self.score_candidates(each, encoded, candidates) for each in predict.each]
        if not predict.members:
            return every[0]
        found = np.empty(candidates.shape)
        for case, items in enumerate(candidates):
            _, first, back = np.unique(items, return_index=True, return_inverse=True)
            found[case] = predict.average([scores[case, first] for scores in every])[back]
        return found

    def best(
        self, predict: Predict, encoded: Sequence[Encoded[Target]], allowed: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the allowed items, bool [cases, items]: int64 and float64 [cases, k], ties by item number."""
        every = np.where(allowed, self.all_scores(predict, encoded)(slice(0, len(encoded))), -np.inf)
        items = retrieve(every, k)
        return items, np.take_along_axis(every, items, 1)

    def judged(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> Judged:
        """A case for each positive item, among all items that are not in the history; of the first cases that fit."""
        if not self.retrieves:
            return super().judged(predict, encoded)
        some = encoded[: max(1, MOST_JUDGED // len(self.catalogue))]
        scores = np.array(self.all_scores(predict, some)(slice(0, len(some))), np.float64)
        for row, e in zip(scores, some, strict=True):
            row[e.target.seen] = -np.inf
        owner = np.repeat(np.arange(len(some)), [len(e.target.items) for e in some])
        return Judged(scores[owner], np.concatenate([e.target.items for e in some]).astype(np.int64))

    # -------------------------------------------------------------- answers

    def unanswered(self, example: Example) -> Example:
        return replace(question(example), output=self.catalogue.ids[0])

    def as_unlabeled(self, example: Example) -> Example:
        return replace(question(example), output=self.catalogue.drawn(render(example)))

    def answers(self, predict: Predict, encoded: Sequence[Encoded[Target]], k: int = 10) -> list[ItemsAnswer]:
        """The k best items that are not in the history (with `mask_seen`), of the example's candidates if it has any.

        Raises ValueError for an example without candidates, where the task scores only given ones.
        """
        every = self.all_scores(predict, encoded) if self.retrieves else None
        answers = []
        for start in range(0, len(encoded), BLOCK):
            block = slice(start, min(start + BLOCK, len(encoded)))
            scores = self._listed_scores(predict, encoded[block]) if every is None else np.array(every(block))
            for row, e in enumerate(encoded[block]):
                if e.example.candidates and every is not None:
                    scores[row, np.setdiff1d(np.arange(len(self.catalogue)), self._listed(e))] = -np.inf
                if self.config.mask_seen:
                    scores[row, e.target.history] = -np.inf
            items, values = best_items(scores, min(k, len(self.catalogue)))
            answers += [self._named(*best) for best in zip(items.tolist(), values.tolist(), strict=True)]
        return answers

    def _listed(self, e: Encoded[Target]) -> np.ndarray:
        """The numbers of an example's candidates, sorted."""
        return np.unique(self.catalogue.numbers(e.example.candidates))

    def _listed_scores(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> np.ndarray:
        """float32 [cases, items]: scores of the examples' candidates, −inf for other items."""
        for e in encoded:
            if not e.example.candidates:
                raise ValueError(
                    f"example {e.example.id!r} has no candidates, but this task scores only given items: list their "
                    "ids in its field candidates, or use the run as `recommend --rerank`."
                )
        listed = [self._listed(e) for e in encoded]
        most = max(map(len, listed))
        found = self.listed_scores(predict, encoded, np.stack([np.resize(each, most) for each in listed]))
        scores = np.full((len(encoded), len(self.catalogue)), -np.inf, np.float32)
        for row, each in enumerate(listed):
            scores[row, each] = found[row, : len(each)]
        return scores

    def _named(self, items: Sequence[int], scores: Sequence[float]) -> ItemsAnswer:
        best = [
            RankedItem(self.catalogue.ids[item], self.catalogue.name(item), score)
            for item, score in zip(items, scores, strict=True)
            if item >= 0
        ]
        return ItemsAnswer(tuple(best))

    # -------------------------------------------------------------- evaluation

    def check(self, encoded: Sequence[Encoded[Target]]) -> None:
        """Draws the candidates of all protocols and caches them for `score`."""
        self._asked(encoded)

    def score(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> Scores:
        """Metrics of all protocols, see `ranking.evaluation`."""
        if self.retrieves:
            return self.score_with(self.all_scores(predict, encoded), encoded)
        cases, candidates = self._asked(encoded)

        def score(items: np.ndarray) -> np.ndarray:
            return self.listed_scores(predict, encoded, items)

        settings = {"cutoffs": self.config.cutoffs, "ties": self.config.ties}
        found = evaluate_candidates(cases, candidates, score, **settings)
        report = ""
        if self.config.orders:
            positives = np.array([items[0] for items in cases.positives])
            report = str(position_report(score, positives, candidates[0].items, orders=self.config.orders))
        return self._scores(found, encoded, cases, report)

    def score_with(self, score_block: Callable[[slice], np.ndarray], encoded: Sequence[Encoded[Target]]) -> Scores:
        """Metrics of all protocols for any scores.

        Args:
          score_block: slice of cases -> float [cases, items].
        """
        cases, candidates = self._asked(encoded)
        found = evaluate(
            cases,
            candidates,
            score_block,
            full=self.retrieves and "full" in self.config.protocols,
            cutoffs=self.config.cutoffs,
            ties=self.config.ties,
            mask_seen=self.config.mask_seen,
        )
        return self._scores(found, encoded, cases)

    def _scores(self, found: Ranking, encoded: Sequence[Encoded[Target]], cases: Cases, report: str = "") -> Scores:
        predictions = _Predictions(self.catalogue, encoded, found, self.metric, found.cases[self.metric])
        parts, places = cases.segments, cases.places
        scores = Scores(found.metrics, found.cases, predictions, report, found.main, parts, places, found.protocol)
        return scores.owned_by(owners_of(examples_of(encoded)))

    def _asked(self, encoded: Sequence[Encoded[Target]]) -> tuple[Cases, list[Candidates]]:
        """The cases and candidates of the evaluation, cached for the same cases."""
        key = id(encoded)
        if key not in self._known:
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            positives, histories = [], []
            labels: dict[str, list[str]] = {name: [] for name in SEGMENTS}
            for e in encoded:
                positives.append(e.target.items)
                histories.append(e.target.history)
                labels = {name: own for name, own in labels.items() if name in e.example.origin}
                for name, own in labels.items():
                    own.append(sys.intern(e.example.origin[name]))
            popularity = None
            if self.splits is not None:
                popularity = counts_of(self.splits.train, len(self.catalogue))
            cases = Cases(positives, histories, len(self.catalogue), popularity, labels)
            drawn = [protocol for protocol in self.config.protocols if protocol != "full"]
            candidates = self._candidates(drawn, cases, encoded) if drawn else []
            self._known[key] = (encoded, cases, candidates)  # keeps the sequence alive: its id stays valid
        return self._known[key][1:]

    def _candidates(self, protocols: Sequence[str], cases: Cases, encoded: Sequence[Encoded]) -> list[Candidates]:
        """The candidates of each protocol."""
        examples = ((e.example.origin, e.example.candidates) for e in encoded)
        said = [(sys.intern(o.get("user", "")), sys.intern(o.get("split", "")), own) for o, own in examples]
        users, splits, listed = (list(column) for column in zip(*said, strict=True))
        chosen, nothing = self._chosen, np.empty(0, np.int32)
        own = [
            np.concatenate([history, chosen.get(user, nothing)])
            for history, user in zip(cases.histories, users, strict=True)
        ]
        asked = Asked(users, cases.positives, own, splits)
        popularity = np.ones(len(self.catalogue)) if cases.popularity is None else cases.popularity
        given = {"folder": self.config.catalogue, "popularity": popularity, "listed": listed}
        return [candidates_for(protocol, asked, self.catalogue, **given) for protocol in protocols]

    @cached_property
    def _chosen(self) -> dict[str, np.ndarray]:
        """User id -> the user's items in all splits."""
        if self.splits is None:
            return {}
        parts = zip(self.splits.train, self.splits.validation, self.splits.test, strict=True)
        return {user: np.concatenate(each) for user, each in zip(self.splits.user_ids, parts, strict=True)}

    def baselines(self, train: Sequence[Encoded[Target]], test: Sequence[Encoded[Target]]) -> dict[str, Scores]:
        """Random order, BM25 on the text and, with training interactions in the catalogue's folder, popularity, Markov,
        co-occurrence (coKNN) and what `ranking.tuned_baselines` tunes."""
        scores = {name: self.score_with(self.baseline_scores(name, test), test) for name in self._baselines}
        found = {name: replace(each, note=NOTES.get(name, "")) for name, each in scores.items()}
        left_out = set() if self.splits is None else set(TUNED) - set(found)
        return found | {name: Scores({}, note="not fitted: too many items") for name in left_out}

    def baseline_scores(self, name: str, encoded: Sequence[Encoded[Target]]) -> Callable[[slice], np.ndarray]:
        """Scores of a baseline, in the form of `score_items`. Raises ValueError for an unknown name."""
        if name not in self._baselines:
            raise ValueError(f"unknown baseline {name!r}: choose from {', '.join(self._baselines)}.")
        if name not in self._fitted_baselines:
            self._fitted_baselines[name] = self._baselines[name]()
        baseline = self._fitted_baselines[name]

        def score_block(block: slice) -> np.ndarray:
            cases = encoded[block]
            return baseline.score([e.target.history for e in cases], [render(e.example) for e in cases])

        return score_block

    @property
    def baseline_names(self) -> list[str]:
        """Of the baselines that know something: all but random order."""
        return [name for name in self._baselines if name != Random.name]

    @cached_property
    def _baselines(self) -> dict[str, Callable[[], Baseline]]:
        """Name of each baseline -> a function that fits it."""
        size, splits = len(self.catalogue), self.splits
        fits: dict[str, Callable[[], Baseline]] = {Random.name: lambda: Random().fit([], size)}
        if splits is not None:
            for baseline in (Popularity(), Markov(), CoOccurrence(), CoOccurrence(divide_by="source")):
                fits[baseline.name] = partial(baseline.fit, splits.train, size)
            fits |= tuned_fits(splits.train, splits.validation, size)
        return fits | {BM25.name: lambda: BM25(self.catalogue.texts).fit([], size)}

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[Shown]:
        """See `Task.showcase`; with the facts that each item shares with the instruction (see `reasons`)."""
        drawn = self.drawn(encoded)
        records = self.score(predict, drawn).predictions
        return [self.explained(self.shown(r), r, e.example) for r, e in zip(records, drawn, strict=True)]

    def explained(self, shown: Shown, record: CaseRecord, example: Example) -> Shown:
        """`shown` with the facts "asked" for, and the matching facts of each answer ("why") and the target."""
        numbers = [self.catalogue.index[item] for item in record["prediction"]]
        for answer, item in zip(shown["answers"], numbers, strict=False):
            answer["why"] = reason(self.catalogue, item, example)
        wanted = reason(self.catalogue, self.catalogue.index[record["reference"][0]], example)
        return shown | {"asked": asked_for(example), "wanted_why": wanted}

    def shown(self, record: CaseRecord) -> Shown:
        names = [self.catalogue.name(self.catalogue.index[item]) for item in record["prediction"][:5]]
        return {
            "instruction": record["input"],
            "wanted": self.catalogue.name(self.catalogue.index[record["reference"][0]]),
            "answers": [{"text": n, "score": s} for n, s in zip(names, record["scores"], strict=False)],
        }


class _Predictions(Sequence[CaseRecord]):
    """One record per case, made on access, since a million records would fill the memory."""

    def __init__(
        self,
        catalogue: Catalogue,
        encoded: Sequence[Encoded[Target]],
        found: Ranking,
        metric: str,
        judged: np.ndarray,
    ):
        self.catalogue, self.encoded, self.found, self.metric, self.judged = catalogue, encoded, found, metric, judged

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, case: Any) -> Any:
        if isinstance(case, slice):
            return [self[i] for i in range(*case.indices(len(self)))]
        e, items = self.encoded[case], self.found.items[case]
        there = items >= 0
        user = owner_of(e.example)[1]
        return {
            "id": e.example.id,
            **({"user": user} if user else {}),
            "input": render(e.example),
            "prediction": [self.catalogue.ids[i] for i in items[there]],
            "scores": self.found.scores[case][there].tolist(),
            "reference": [self.catalogue.ids[i] for i in e.target.items],
            self.metric: float(self.judged[case]),  # the metric that selects the best checkpoint
        }
