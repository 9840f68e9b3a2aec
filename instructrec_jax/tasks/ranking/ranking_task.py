"""What all tasks share that rank the items of a catalogue: settings, targets, evaluation and baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import Text
from instructrec_jax.data.prompts import render
from instructrec_jax.ranking.baselines import BM25, BPR, Baseline, CoOccurrence, Markov, Popularity, Random, tuned_bpr
from instructrec_jax.ranking.candidates import Asked, Candidates, candidates_for, check_protocol
from instructrec_jax.ranking.catalogue import Catalogue, Splits, has_splits
from instructrec_jax.ranking.evaluation import (
    BLOCK,
    Cases,
    Ranking,
    evaluate,
    evaluate_candidates,
    main_metric,
    position_report,
)
from instructrec_jax.tasks.base import Encoded, Predict, Scores, Task, TaskConfig, TaskContext, owner_of, owners_of
from instructrec_jax.tasks.ranking.reasons import asked_for, reason
from instructrec_jax.tasks.texts import tokenise

SEGMENTS = ("wording", "template_wording", "template", "form", "preference", "intention", "language")  # of the origin

REMEMBERED = 8  # sets of cases whose candidates are kept, since several methods are scored on the same

# Named, because --help shows a setting's comment only where its type is a plain name.
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len"]
Ties = Literal["average", "against"]


@dataclass
class RankingConfig(TaskConfig):
    """Rank the items of a catalogue."""

    ranks_catalogue: ClassVar[bool] = True
    catalogue: str = "data/films"  # folder with items.parquet (columns id, title, text)
    protocols: list[str] = field(default_factory=lambda: ["full"])  # full, uni9, uni99, pop99, hard9, listed, FILE
    cutoffs: list[int] = field(default_factory=lambda: [1, 3, 5, 10, 20])  # k of HR@k and NDCG@k
    ties: Ties = "average"  # equal scores: the mean over all orders, or against the wanted item
    mask_seen: bool = True  # items of the history do not compete, unless they are wanted
    orders: int = 0  # for rerankers: report how answers move over so many orders of the candidates; 0: do not


@dataclass(frozen=True)
class Target:
    """What a case wants, as numbers in the catalogue."""

    items: np.ndarray
    """int32, the wanted items: one or several"""
    history: np.ndarray
    """int32, the items chosen before, oldest first"""

    @property
    def seen(self) -> np.ndarray:
        """The items of the history that do not compete, int32, in order of their numbers.

        A repeated choice is a fair target: a wanted item competes although it was seen.
        """
        return np.setdiff1d(self.history, self.items)


class RankingTask(Task):
    """Base of the tasks that score items: subclasses score the whole catalogue, or candidates alone."""

    has_vectors = True  # whether scores are products of vectors; others fill in `score_candidates`
    retrieves = True  # whether the whole catalogue can be ranked; else given candidates alone
    reads_history = False  # whether the network sees the history's items; else it knows what the instruction says

    def __init__(self, config: RankingConfig, context: TaskContext):
        self.config: Any = config
        self.context = context
        self.catalogue = Catalogue.load(config.catalogue) if context.catalogue is None else context.catalogue
        self.new_items = context.new_items  # of the catalogue's end: known by their texts alone
        self._fitted_methods: dict[str, Baseline] = {}
        self._known: dict[tuple[int, ...], tuple[Sequence[Encoded[Target]], Cases, list[Candidates]]] = {}
        if not config.protocols:
            raise ValueError("task.protocols is empty: name at least one, such as full or uni99.")
        for protocol in config.protocols:
            check_protocol(protocol)
        if not self.retrieves and "full" in config.protocols:
            raise ValueError(
                "task.protocols names full, but this task scores given candidates only: name uni9, uni99, pop99, "
                "hard9, listed or a file with candidates."
            )
        self.metric = main_metric(config.cutoffs, config.protocols[0], len(self.catalogue))

    @property
    def ranking(self) -> "RankingTask":
        return self

    @cached_property
    def item_texts(self) -> list[Text]:
        """The tokens of each item's text."""
        names = [f"the text of item {item!r}" for item in self.catalogue.ids]
        texts = tokenise(self.catalogue.texts, names, self.context)
        if None in texts:
            raise ValueError("items cannot be dropped for their length: set data.truncate to left or right.")
        return [text for text in texts if text is not None]

    def target(self, example: Example, name: str) -> Target:
        """The wanted items and the history of an example, which errors call `name`."""
        wanted = (example.output,) if isinstance(example.output, str) else example.output
        if not isinstance(wanted, tuple) or not wanted:
            raise ValueError(f"{name}: its output should be an item id, or several, but is {example.output!r}.")
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"{name}: its output names an item twice: {wanted!r}.")
        try:
            numbers = self.catalogue.numbers([*wanted, *example.history])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return Target(numbers[: len(wanted)], numbers[len(wanted) :])

    def encode(self, examples: Sequence[Example]) -> list[Encoded[Any]]:
        """The instruction's tokens and the `Target` of each example."""
        names = [f"the instruction of example {example.id or number!r}" for number, example in enumerate(examples)]
        texts = tokenise([render(example) for example in examples], names, self.context)
        return [
            Encoded(text, self.target(example, name), example)
            for example, text, name in zip(examples, texts, names, strict=True)
            if text is not None
        ]

    @cached_property
    def splits(self) -> Splits | None:
        """Who chose what, where the catalogue's folder says so."""
        return Splits.load(self.config.catalogue, self.catalogue) if has_splits(self.config.catalogue) else None

    @cached_property
    def popularity(self) -> np.ndarray:
        """float64 [items]: each item's share of the training interactions, after adding one to each."""
        counts = np.ones(len(self.catalogue))
        for items in self.splits.train if self.splits else []:
            np.add.at(counts, items, 1)
        return counts / counts.sum()

    # -------------------------------------------------------------- scores

    def item_vectors(self, predict: Predict) -> np.ndarray:
        """float32 [items, size]."""
        raise TypeError(f"{type(self).__name__} has no item_vectors().")

    def query_vectors(self, predict: Predict, encoded: Sequence[Encoded[Any]]) -> np.ndarray:
        """float32 [cases, size]: their products with the items' vectors are the scores, higher is better."""
        raise TypeError(f"{type(self).__name__} has no query_vectors().")

    def score_items(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> Callable[[slice], np.ndarray]:
        """A function: block of the cases -> float32 [cases, items], higher is better."""
        items, queries = self.item_vectors(predict), self.query_vectors(predict, encoded)
        return lambda block: queries[block] @ items.T

    def score_candidates(
        self, predict: Predict, encoded: Sequence[Encoded[Target]], candidates: np.ndarray
    ) -> np.ndarray:
        """Scores of given items, float32 [cases, k] for item numbers int [cases, k], higher is better."""
        return products(self.query_vectors(predict, encoded), self.item_vectors(predict), candidates)

    # -------------------------------------------------------------- evaluation

    def check(self, encoded: Sequence[Encoded[Target]]) -> None:
        """Draws the candidates of all protocols; they are kept for the evaluation."""
        self._asked(encoded)

    def score(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> Scores:
        """Metrics under all protocols: see `ranking.evaluation`."""
        if self.retrieves:
            return self.score_with(self.score_items(predict, encoded), encoded)
        cases, candidates = self._asked(encoded)

        def score(items: np.ndarray) -> np.ndarray:
            return self.score_candidates(predict, encoded, items)

        settings = {"cutoffs": self.config.cutoffs, "ties": self.config.ties}
        found = evaluate_candidates(cases, candidates, score, **settings)
        report = ""
        if self.config.orders:
            wanted = np.array([items[0] for items in cases.positives])
            report = str(position_report(score, wanted, candidates[0].items, orders=self.config.orders))
        return self._scores(found, encoded, cases, report)

    def score_with(self, score_block: Callable[[slice], np.ndarray], encoded: Sequence[Encoded[Target]]) -> Scores:
        """The same for scores from any method.

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
        predictions = _Predictions(self.catalogue, encoded, found, found.cases[self.metric])
        scores = Scores(found.metrics, found.cases, predictions, report, found.main, cases.segments, found.protocol)
        return scores.owned_by(owners_of([e.example for e in encoded]))

    def _asked(self, encoded: Sequence[Encoded[Target]]) -> tuple[Cases, list[Candidates]]:
        """What the evaluator is asked, made once for the same cases."""
        key = tuple(map(id, encoded))
        if key not in self._known:
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            examples = [e.example for e in encoded]
            wanted, histories = [e.target.items for e in encoded], [e.target.history for e in encoded]
            popularity = None
            if self.splits is not None:
                popularity = np.bincount(np.concatenate(self.splits.train), minlength=len(self.catalogue)).astype(float)
            labels = {
                name: [example.origin[name] for example in examples]
                for name in SEGMENTS
                if all(name in example.origin for example in examples)
            }
            cases = Cases(wanted, histories, len(self.catalogue), popularity, labels)
            users = [example.origin.get("user", "") for example in examples]
            chosen = self._chosen
            nothing = np.empty(0, np.int32)
            asked = Asked(
                users,
                wanted,
                [
                    np.concatenate([history, chosen.get(user, nothing)])
                    for history, user in zip(histories, users, strict=True)
                ],
                [example.origin.get("split", "") for example in examples],
            )
            candidates = [
                candidates_for(
                    protocol,
                    asked,
                    self.catalogue,
                    folder=self.config.catalogue,
                    popularity=np.ones(len(self.catalogue)) if popularity is None else popularity,
                    listed=[example.candidates for example in examples],
                )
                for protocol in self.config.protocols
                if protocol != "full"
            ]
            self._known[key] = (encoded, cases, candidates)  # with the examples, so that their ids stay theirs
        return self._known[key][1:]

    @cached_property
    def _chosen(self) -> dict[str, np.ndarray]:
        """User id -> all items of the user, in any split."""
        if self.splits is None:
            return {}
        parts = zip(self.splits.train, self.splits.validation, self.splits.test, strict=True)
        return {user: np.concatenate(each) for user, each in zip(self.splits.user_ids, parts, strict=True)}

    def baselines(self, train: Sequence[Encoded[Target]], test: Sequence[Encoded[Target]]) -> dict[str, Scores]:
        """Random order, BM25 on the words; and where the folder has training sequences, what learns from them."""
        return {name: self.score_with(self.simple_scores(name, test), test) for name in self._simple_methods}

    def simple_scores(self, name: str, encoded: Sequence[Encoded[Target]]) -> Callable[[slice], np.ndarray]:
        """Scores of one of the baselines, by its name: a function as `score_items` gives it."""
        if name not in self._simple_methods:
            raise ValueError(f"there is no baseline {name!r} here, but {', '.join(self._simple_methods)}.")
        if name not in self._fitted_methods:
            self._fitted_methods[name] = self._simple_methods[name]()
        method = self._fitted_methods[name]
        histories, words = [e.target.history for e in encoded], [render(e.example) for e in encoded]
        return lambda block: method.score(histories[block], words[block])

    @cached_property
    def _simple_methods(self) -> dict[str, Callable[[], Baseline]]:
        """Name -> a function that fits it."""
        size, splits = len(self.catalogue), self.splits
        methods: dict[str, Callable[[], Baseline]] = {Random.name: lambda: Random().fit([], size)}
        if splits is not None:
            for method in (Popularity(), Markov(), CoOccurrence(), CoOccurrence(divide_by="source")):
                methods[method.name] = partial(method.fit, splits.train, size)
            methods[BPR.name] = lambda: tuned_bpr(splits.train, splits.validation, size)
        return methods | {BM25.name: lambda: BM25(self.catalogue.texts).fit([], size)}

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        """As every task's, and why: the facts that each item shares with what was asked (see `reasons`)."""
        drawn = self.drawn(encoded)
        records = self.score(predict, drawn).predictions
        return [self.explained(self.shown(r), r, e.example) for r, e in zip(records, drawn, strict=True)]

    def explained(self, shown: dict[str, Any], record: Mapping[str, Any], example: Example) -> dict[str, Any]:
        """What is `shown` of a case with "asked", facts that the example says it asks for, and "why" of each answer."""
        numbers = [self.catalogue.index[item] for item in record["prediction"]]
        for answer, item in zip(shown["answers"], numbers, strict=False):
            answer["why"] = reason(self.catalogue, item, example)
        wanted = reason(self.catalogue, self.catalogue.index[record["reference"][0]], example)
        return shown | {"asked": asked_for(example), "wanted_why": wanted}

    def shown(self, record: Mapping[str, Any]) -> dict[str, Any]:
        names = [self.catalogue.name(self.catalogue.index[item]) for item in record["prediction"][:5]]
        return {
            "instruction": record["input"],
            "wanted": self.catalogue.name(self.catalogue.index[record["reference"][0]]),
            "answers": [{"text": n, "score": s} for n, s in zip(names, record["scores"], strict=False)],
        }


def products(queries: np.ndarray, items: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """float32 [cases, k]: each query [cases, size] with its own candidates, item numbers int [cases, k]."""
    found = np.empty(candidates.shape, np.float32)
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        found[block] = np.einsum("cd,ckd->ck", queries[block], items[candidates[block]])
    return found


class _Predictions(Sequence[dict[str, Any]]):
    """One record a case, made when it is asked for: a million of them would fill the memory."""

    def __init__(self, catalogue: Catalogue, encoded: Sequence[Encoded[Target]], found: Ranking, judged: np.ndarray):
        self.catalogue, self.encoded, self.found, self.judged = catalogue, encoded, found, judged

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, case: Any) -> Any:
        if isinstance(case, slice):
            return [self[i] for i in range(*case.indices(len(self)))]
        e, items = self.encoded[case], self.found.items[case]
        there = items >= 0
        return {
            "id": e.example.id,
            "user": owner_of(e.example)[1],
            "input": render(e.example),
            "prediction": [self.catalogue.ids[i] for i in items[there]],
            "scores": self.found.scores[case][there].tolist(),
            "reference": [self.catalogue.ids[i] for i in e.target.items],
            "score": float(self.judged[case]),  # the metric that the run is chosen by
        }
