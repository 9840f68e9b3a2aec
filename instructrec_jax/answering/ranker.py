"""Rankers of a catalogue: opened runs, baselines, and fusions of two of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from instructrec_jax.answering.evidence import words_of
from instructrec_jax.answering.new_items import with_new_items
from instructrec_jax.answering.phrasing import wording_of
from instructrec_jax.data.example import Example
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.launch import once
from instructrec_jax.files import read_json, write_json
from instructrec_jax.metrics.bootstrap import bootstrap_interval
from instructrec_jax.ranking.baselines import CoOccurrence
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.ranking.fusion import (
    BLOCK,
    GRID,
    Fusion,
    best_place,
    hybrid,
    mask,
    moments,
    rerank_best,
    retrieve,
    tune_fusion,
    weight_gains,
)
from instructrec_jax.ranking.index import ItemIndex, products
from instructrec_jax.remote import is_url
from instructrec_jax.runs.bucket import local_run
from instructrec_jax.runs.run import Run, require_run, run_settings
from instructrec_jax.tasks.base import Encoded, examples_of
from instructrec_jax.tasks.kinds import as_ranking
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.ranking_task import RankingTask
from instructrec_jax.tasks.scores import owners_of

# Of hybrids that validation cases cannot tell apart (the settings of some baselines are tuned on the same cases): the
# best of nine on the 610 of MovieLens latest-small often gained nothing on test cases, where coKNN's gained a fifth.
PREFERRED = CoOccurrence().name


class Scorer(Protocol):
    """A scorer of all or given items of a catalogue, for each case."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]: ...

    def scores(self, cases: Sequence[Encoded], items: np.ndarray | None = None) -> np.ndarray:
        """Scores float [cases, k] of items int [cases, k], or [cases, items] of the whole catalogue (None)."""
        ...


class Ranker:
    """An opened run whose task ranks a catalogue.

    Raises ValueError for a run of another task.
    """

    def __init__(self, run: Run):
        task = as_ranking(run.task)
        if task is None:
            raise ValueError(f"{run.path} was trained for the task {run.kind}, which ranks no catalogue.")
        self.run, self.task = run, task
        self.folder: str = self.task.config.catalogue
        self.catalogue = self.task.catalogue
        self.wording = wording_of(self.folder)

    @property
    def predict(self) -> Predict:
        return self.run.predictor

    @classmethod
    def open(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        *,
        step: int | None = None,
        items: str | Path | None = None,
        fixed_shapes: bool = False,
    ) -> "Ranker":
        """Opens a run directory.

        Args:
          items: file of additional items (see `new_items`).
          fixed_shapes: see `Run`.
        """
        path = local_run(path)
        require_run(path)
        config = run_settings(path, overrides)
        if not config.task.ranks_catalogue:
            raise ValueError(f"{path} was trained for the task {config.task.name}, which ranks no catalogue.")
        if items is None:
            return cls(Run.open(path, config, step=step, fixed_shapes=fixed_shapes))
        if not getattr(config.task, "text", True) and getattr(config.task, "pictures", None) is None:
            raise ValueError("task.text is false: this run knows items by their numbers alone, so none can be added.")
        old = Catalogue.load(str(getattr(config.task, "catalogue", "")))
        joined = with_new_items(old, items)
        new = len(joined) - len(old)
        return cls(Run.open(path, config, step=step, joined=joined, new_items=new, fixed_shapes=fixed_shapes))

    @property
    def has_vectors(self) -> bool:
        """Whether scores are inner products of vectors, which the average of several models is not."""
        return self.task.has_vectors and not self.run.members

    @property
    def tells_history(self) -> bool:
        """Whether the instruction has to name the history."""
        return not self.task.reads_history or self.wording.always_told

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The examples encoded by the task. Raises ValueError if it drops one for its length."""
        encoded = self.task.encode(examples)
        if len(encoded) != len(examples):
            raise ValueError(
                f"{len(examples) - len(encoded)} of {len(examples)} cases are longer than data.max_length, and "
                "data.truncate is drop: raise data.max_length, or set data.truncate to left or right."
            )
        return encoded

    def unread(self, text: str) -> list[str]:
        """The words that consist of unknown tokens only, so that the model cannot distinguish them."""
        tokenizer, words = self.task.context.tokenizer, words_of(text)
        if tokenizer.unk_token_id is None or not words:
            return []
        found = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
        return [word for word, ids in zip(words, found, strict=True) if set(ids) <= {tokenizer.unk_token_id}]

    @cached_property
    def vectors(self) -> np.ndarray:
        """float32 [items, size]"""
        with heartbeat(f"computing the vectors of {len(self.task.catalogue):,} items"):
            return self.task.item_vectors(self.predict)

    @cached_property
    def index(self) -> ItemIndex:
        return ItemIndex(self.vectors, mesh=self.run.mesh, fixed_shapes=self.run.fixed_shapes)

    def scores(self, cases: Sequence[Encoded], items: np.ndarray | None = None) -> np.ndarray:
        """Scores float [cases, k] of items int [cases, k], or [cases, items] of the whole catalogue (None)."""
        if self.has_vectors:
            queries = self.task.query_vectors(self.predict, cases)
            return queries @ self.vectors.T if items is None else products(queries, self.vectors, items)
        if items is None:
            return self.task.all_scores(self.predict, cases)(slice(0, len(cases)))
        if self.predict.members and self.task.retrieves:  # shares and ranks are those in the whole catalogue
            return np.take_along_axis(self.scores(cases), items, axis=1)
        return self.task.listed_scores(self.predict, cases, items)

    def best(self, cases: Sequence[Encoded], allowed: np.ndarray, k: int) -> "Best":
        """The k best of the allowed items, bool [cases, items]; ties by item number."""
        ones = np.ones((len(cases), 1))
        if self.has_vectors:
            queries = self.task.query_vectors(self.predict, cases)
            items, scores = self.index.search(queries, k, exclude=[np.flatnonzero(~row) for row in allowed])
            return Best(np.maximum(items, 0), scores.astype(np.float64), (ones,))
        return Best(*self.task.best(self.predict, cases, allowed, k), (ones,))


class BaselineRanker:
    """A baseline of a run's task, by its name (coKNN, popularity ...)."""

    def __init__(self, task: RankingTask, name: str):
        self.task, self.name = task, name
        task.baseline_scores(name, [])  # raises for an unknown name

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        return self.task.encode(examples)

    def scores(self, cases: Sequence[Encoded], items: np.ndarray | None = None) -> np.ndarray:
        every = self.task.baseline_scores(self.name, cases)(slice(0, len(cases)))
        return every if items is None else np.take_along_axis(every, items, axis=1)


def open_second(first: Ranker, name: str | Path, *, reranks: bool, items: str | Path | None = None) -> Scorer:
    """The ranker to fuse with `first`: a run directory on the same catalogue, or a baseline by its name.

    Args:
      reranks: whether it scores only the items that `first` retrieves; else it must rank the whole catalogue.
    """
    if not first.task.retrieves:
        raise ValueError(
            f"{first.run.path} does not rank its whole catalogue, so it cannot be combined with a second ranker."
        )
    name = local_run(name) if is_url(name) else name
    if not Path(name).is_dir():
        return BaselineRanker(first.task, str(name))
    second = Ranker.open(name, items=items, fixed_shapes=first.run.fixed_shapes)
    if second.catalogue.ids != first.catalogue.ids:
        raise ValueError(f"{name} does not rank the items of {first.folder}: train both on the same prepared folder.")
    if not (reranks or second.task.retrieves):
        raise ValueError(f"{name} scores given items only, so it cannot be part of a hybrid: use --rerank.")
    return second


@dataclass(frozen=True)
class Best:
    """The best items of some cases.

    Attributes:
      items: int64 [cases, k], best first.
      scores: float64 [cases, k]; −inf if fewer than k items are allowed.
      units: weight of one unit of each ranker's raw score in `scores`, float64 [cases, 1] per ranker.
    """

    items: np.ndarray
    scores: np.ndarray
    units: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class FusedRanker:
    """A fusion of two rankers, which both `evaluate` and `recommend` use."""

    first: Ranker
    second: Scorer
    fusion: Fusion

    def scores(
        self, first_cases: Sequence[Encoded], second_cases: Sequence[Encoded], hidden: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Scores float64 [cases, items]; −inf for each case's `hidden` items.

        Args:
          first_cases, second_cases: the same cases, encoded by each ranker.
        """
        own = mask(self.first.scores(first_cases), hidden)
        return self.fusion.scores(own, lambda items: self.second.scores(second_cases, items))

    def best(
        self,
        first_cases: Sequence[Encoded],
        second_cases: Sequence[Encoded],
        hidden: Sequence[np.ndarray],
        allowed: np.ndarray,
        k: int,
    ) -> Best:
        """The k best of the allowed items, by `scores`.

        Args:
          allowed: bool [cases, items]; hidden items are never allowed.
        """
        weight, own = self.fusion.weight, mask(self.first.scores(first_cases), hidden)
        if self.fusion.k is None:
            others = mask(self.second.scores(second_cases), hidden)
            scores = np.where(allowed, hybrid(own, others, weight), -np.inf)
            items = retrieve(scores, k)
            compared = own, others
        else:
            found: list[np.ndarray] = []

            def rerank(items: np.ndarray) -> np.ndarray:
                found.append(np.asarray(self.second.scores(second_cases, items), np.float64))
                return found[0]

            own = np.where(allowed, own, -np.inf)
            candidates, mixed = rerank_best(own, rerank, k=self.fusion.k, weight=weight)
            scores = np.full(own.shape, -np.inf)
            np.put_along_axis(scores, candidates, mixed, axis=1)
            scores[~np.isfinite(own)] = -np.inf
            items = retrieve(scores, k)
            compared = np.take_along_axis(own, candidates, 1), found[0]
            if weight == 1:  # the second ranker's own scores
                ones = np.ones((len(own), 1))
                return Best(items, np.take_along_axis(scores, items, 1), (0 * ones, ones))
        units = (1 - weight) / moments(compared[0])[1], weight / moments(compared[1])[1]
        return Best(items, np.take_along_axis(scores, items, 1), units)


def tune(
    first: Ranker, second: Scorer, name: str, validation: Sequence[Encoded], k: int | None, metric_cases: str
) -> Fusion:
    """The best fusion of two rankers on validation cases (see `ranking.fusion.tune_fusion`).

    Args:
      metric_cases: name of the setting with the validation cases, for the error if there are none.
    """
    if k is not None and k < 1:
        raise ValueError(f"--retrieve must be at least 1, but is {k}.")
    if not validation:
        raise ValueError(f"the weight of {name} is tuned on {metric_cases}, which lists no sources.")
    others = second.encode([e.example for e in validation])

    def own(block: slice) -> np.ndarray:
        cases = validation[block]
        return mask(first.scores(cases), [e.target.seen for e in cases])

    return tune_fusion(
        own,
        lambda block, items: second.scores(others[block], items),
        [e.target.items for e in validation],
        name=name,
        k=k,
    )


# ---------------------------------------------------------------- fusions.json of a run


class KeptFusion(TypedDict):
    """A tuned fusion of fusions.json; the ranker's current checkpoints must be those of its tuning."""

    name: str
    weight: float
    k: int | None
    checkpoints: list[int | None]
    chosen: NotRequired[bool]  # by training, for `recommend`, `evaluate` and `serve`


def read_fusions(file: Path) -> dict[str, KeptFusion]:
    """The tuned fusions of a run, by ranker; none without the file. Raises ValueError naming a damaged file."""
    return read_json(file, dict[str, KeptFusion]) if file.is_file() else {}


def keep_fusion(first: Ranker, second: Scorer, fusion: Fusion, cases: int, *, chosen: bool = False) -> None:
    """Writes a tuned fusion to the run directory, so that `recommend` uses what `evaluate` measured."""
    if not first.run.trained:
        return
    file, key = first.run.path / "fusions.json", _key(fusion.name, fusion.k)
    entry = asdict(fusion) | {"validation_cases": cases, "checkpoints": _checkpoints(first, second)}

    def write() -> None:
        kept = read_fusions(file)
        is_chosen = chosen or (key in kept and kept[key].get("chosen", False))
        if chosen:
            for other in kept.values():
                other.pop("chosen", None)
        write_json(file, {**kept, key: entry | ({"chosen": True} if is_chosen else {})})

    once(write)


def choose_fusion(first: Ranker, validation: Sequence[Encoded]) -> FusedRanker | None:
    """The hybrid with a baseline that is best on validation cases, written to the run directory as the chosen one.

    None where no baseline's hybrid is better than the run alone: the 95% interval of the mean gain in NDCG@10 (paired
    bootstrap) has to lie above 0. Each weight is tuned on the cases of that interval, which therefore is a little
    optimistic. coKNN's is chosen where it is within one standard error of the best (Breiman et al., 1984,
    "Classification and Regression Trees", section 3.4.3).
    """
    seconds = {name: BaselineRanker(first.task, name) for name in first.task.baseline_names}
    found: dict[str, list[np.ndarray]] = {name: [] for name in seconds}
    for start in range(0, len(validation), BLOCK):
        block = validation[start : start + BLOCK]
        own, positives = mask(first.scores(block), [e.target.seen for e in block]), [e.target.items for e in block]
        for name, second in seconds.items():
            found[name].append(weight_gains(own, second.scores(block), positives))
    owners = owners_of(examples_of(validation))
    helpful: dict[str, tuple[Fusion, np.ndarray]] = {}
    for name, blocks in found.items():
        gains = np.concatenate(blocks, 1)
        place = best_place(gains)
        if bootstrap_interval(gains[place] - gains[0], owners=owners)[1] > 0:  # weight 0: the run alone
            helpful[name] = Fusion(name, GRID[place]), gains[place]
    if not helpful:
        return None
    best = max(helpful, key=lambda name: float(helpful[name][1].mean()))
    if PREFERRED in helpful:
        mean, low, high = bootstrap_interval(helpful[best][1] - helpful[PREFERRED][1], owners=owners)
        best = PREFERRED if mean <= (high - low) / (2 * 1.96) else best
    chosen = FusedRanker(first, seconds[best], helpful[best][0])
    keep_fusion(first, chosen.second, chosen.fusion, len(validation), chosen=True)
    return chosen


def chosen_fusion(first: Ranker) -> FusedRanker | None:
    """The hybrid that training chose.

    None where it chose none, chose it for another checkpoint, or `evaluation.fuse` is false now.

    Raises ValueError where the baseline cannot be fitted any more, because the catalog has lost its interactions.
    """
    if not (first.run.trained and first.run.config.evaluation.fuse):
        return None
    for kept in read_fusions(first.run.path / "fusions.json").values():
        if kept.get("chosen"):
            if kept["name"] not in first.task.baseline_names:
                raise ValueError(
                    f"{first.run.path} answers with {kept['name']} mixed in, as training chose, but {first.folder} has "
                    "no splits/train.jsonl to fit it on: put the file back, or set --evaluation.fuse false."
                )
            second = BaselineRanker(first.task, kept["name"])
            if kept["checkpoints"] == _checkpoints(first, second):
                return FusedRanker(first, second, Fusion(kept["name"], float(kept["weight"]), kept["k"]))
    return None


def kept_fusion(first: Ranker, second: Scorer, name: str, *, reranks: bool) -> Fusion:
    """The fusion that `evaluate` tuned for two rankers.

    Raises ValueError if none was tuned for their current checkpoints.
    """
    flag = "--rerank" if reranks else "--hybrid"
    file = first.run.path / "fusions.json"
    kept = read_fusions(file)
    entry = kept.get(_key(name, 0 if reranks else None))
    remedy = (
        f"tune it on data.validation with `evaluate {first.run.path} {flag} {name}`, or give a weight from 0 (first "
        f"ranker only) to 1 (second only): {flag} {name}=1."
    )
    if entry is None:
        raise ValueError(f"the weight of {name} with {first.run.path} has not been tuned: {remedy}")
    if entry["checkpoints"] != _checkpoints(first, second):
        raise ValueError(f"the weight of {name} was tuned for other checkpoints ({entry['checkpoints']}): {remedy}")
    return Fusion(name, float(entry["weight"]), entry["k"])


def _key(name: str, k: int | None) -> str:
    who = str(Path(name).resolve()) if Path(name).is_dir() else name
    return f"{'hybrid' if k is None else 'rerank'}: {who}"


def _checkpoints(first: Ranker, second: Scorer) -> list[int | None]:
    runs = [ranker.run for ranker in (first, second) if isinstance(ranker, Ranker)]
    return [member.checkpoint for run in runs for member in run.members or (run,)]
