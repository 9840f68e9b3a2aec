"""What all tasks share that rank the items of a catalogue: settings, targets, evaluation and baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import Text
from instructrec_jax.data.prompts import render
from instructrec_jax.metrics import ranking
from instructrec_jax.recommendation import baselines
from instructrec_jax.recommendation.catalogue import Catalogue, Splits, has_splits
from instructrec_jax.tasks.base import Encoded, Predict, Scores, Task, TaskConfig, TaskContext, tokenise

BLOCK = 512  # cases scored at a time: [BLOCK, items] is the largest array of an evaluation

# Named, because --help shows a setting's comment only where its type is a plain name.
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len"]
Ties = Literal["average", "against"]


@dataclass
class RankingConfig(TaskConfig):
    """Rank the items of a catalogue."""

    catalogue: str = "data/films"  # folder with items.parquet (columns id, title, text)
    protocols: list[str] = field(default_factory=lambda: ["full"])  # what the wanted items are ranked among
    cutoffs: list[int] = field(default_factory=lambda: [1, 3, 5, 10, 20])  # k of HR@k and NDCG@k
    ties: Ties = "average"  # equal scores: the mean over all orders, or against the wanted item


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

    retrieves = True  # whether `score_items` can rank the whole catalogue cheaply
    # Strategies that rank given candidates alone set it to False and fill in `score_candidates`.

    def __init__(self, config: RankingConfig, context: TaskContext):
        self.config: Any = config
        self.context = context
        self.catalogue = Catalogue.load(config.catalogue)
        self.metric = f"NDCG@{10 if 10 in config.cutoffs else max(config.cutoffs)}"

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

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
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

    def score_items(self, predict: Predict, encoded: Sequence[Encoded]) -> Callable[[slice], np.ndarray]:
        """A function: block of the cases -> float32 [cases, items], higher is better."""
        raise TypeError(f"{type(self).__name__} has no score_items().")

    def score_candidates(self, predict: Predict, encoded: Sequence[Encoded], candidates: np.ndarray) -> np.ndarray:
        """Scores of given items, float32 [cases, k] for item numbers int [cases, k], higher is better."""
        score_block = self.score_items(predict, encoded)
        blocks = [slice(start, start + BLOCK) for start in range(0, len(encoded), BLOCK)]
        found = [np.take_along_axis(score_block(block), candidates[block], axis=1) for block in blocks]
        return np.concatenate([np.empty((0, candidates.shape[1]), np.float32), *found])

    # -------------------------------------------------------------- evaluation

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        return self.score_with(self.score_items(predict, encoded), encoded)

    def score_with(self, score_block: Callable[[slice], np.ndarray], encoded: Sequence[Encoded]) -> Scores:
        """Ranks the wanted items by scores from any method, over the full catalogue, seen items masked.

        Args:
          score_block: slice of cases -> float [cases, items].
        """
        full, predictions = [], []
        top = 20
        for start in range(0, len(encoded), BLOCK):
            block = slice(start, start + BLOCK)
            scores = np.asarray(score_block(block))
            targets = np.array([e.target.items[0] for e in encoded[block]])
            seen = [e.target.seen for e in encoded[block]]
            full.append(ranking.target_ranks(scores, targets, seen))
            predictions += self._answers(scores, seen, encoded[block], top)
        ranks = ranking.concatenate(full)
        metrics = {
            name: value
            for name, value in ranking.ranking_metrics(ranks, self.config.cutoffs).items()
            # At 1 all three are the same.
            if name == self.metric or not name.endswith("@1") or not name.startswith(("NDCG", "MRR"))
        }
        cases = {f"NDCG@{k}": ranking.ndcg(ranks, k) for k in self.config.cutoffs}
        return Scores(metrics, cases, predictions)

    def _answers(self, scores: np.ndarray, seen: list, encoded: Sequence[Encoded], top: int) -> list[dict[str, Any]]:
        masked = scores.astype(np.float32)
        for case, items in enumerate(seen):
            masked[case, items] = -np.inf
        order = np.argsort(-masked, axis=1, kind="stable")[:, :top]
        return [
            {
                "id": e.example.id,
                "instruction": e.example.instruction,
                "wanted": self.catalogue.name(e.target.items[0]),
                "answers": [
                    {
                        "item": self.catalogue.ids[i],
                        "text": self.catalogue.name(i),
                        "score": float(masked[case, i]),
                    }
                    for i in order[case]
                    if np.isfinite(masked[case, i])
                ],
                "origin": dict(e.example.origin),
            }
            for case, e in enumerate(encoded)
        ]

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """BM25 on the words; popularity, Markov-1 and coKNN where the folder has training sequences."""
        methods: list[baselines.Baseline] = [baselines.BM25(self.catalogue.texts)]
        sequences: list[np.ndarray] = []
        if has_splits(self.config.catalogue):
            sequences = Splits.load(self.config.catalogue, self.catalogue).train
            methods = [baselines.Popularity(), baselines.Markov(), baselines.CoOccurrence(), *methods]
        return {method.name: self._baseline(method, sequences, test) for method in methods}

    def _baseline(self, method: Any, sequences: list[np.ndarray], test: Sequence[Encoded]) -> Scores:
        method.fit(sequences, len(self.catalogue))
        histories, words = [e.target.history for e in test], [render(e.example) for e in test]
        return self.score_with(lambda block: method.score(histories[block], words[block]), test)

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        chosen = [encoded[i] for i in np.random.default_rng(self.context.seed).permutation(len(encoded))[:5]]
        records = self.score(predict, chosen).predictions
        return [record | {"answers": record["answers"][:5]} for record in records]
