"""The ranking evaluator: scores of any method -> metrics, per-case values and ranked items, on the same cases.

    cases = Cases(positives, histories, num_items, ...)
    evaluate(cases, candidate_sets, score_block, ...)             methods that score the whole catalogue, in one pass
    evaluate_candidates(cases, candidate_sets, score, ...)        methods that score given candidates

Metrics over the full catalogue have plain names ("NDCG@10"); metrics among candidates are prefixed with the protocol
("uni9 NDCG@3"). With several positive items in a case, HR@k is 1 if any is among the first k, Recall@k is the share of
them, and NDCG@k is normalized by the ideal ranking.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from instructrec_jax.distributed.launch import is_first, say
from instructrec_jax.metrics import ranking
from instructrec_jax.metrics.ranking import Ranks
from instructrec_jax.ranking.candidates import Candidates, name_and_size, pairs
from instructrec_jax.ranking.fusion import retrieve

BLOCK = 256  # cases scored at a time: [BLOCK, items] is the largest array of an evaluation
TOP = 20  # items kept of each ranking
COLD_SHARE = 0.25  # cold: this share of the users with the shortest histories, and of items with fewest interactions
POPULARITY_AXIS = "training interactions of the positive item"
LONG = 10.0  # seconds of an evaluation that says how fast it was
MAX_GROUPS = 60  # a label with more values than this makes no segments


@dataclass(frozen=True)
class Cases:
    """The cases of an evaluation, as item numbers. Lists have one entry per case."""

    positives: Sequence[np.ndarray]
    """the positive items, distinct, at least one"""
    histories: Sequence[np.ndarray]
    """earlier items, oldest first; they do not compete, except positive items"""
    num_items: int
    popularity: np.ndarray | None = None
    """training interactions of each item [items], if known"""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """further groupings of the cases: name -> value of each case"""

    def __len__(self) -> int:
        return len(self.positives)

    @cached_property
    def owner(self) -> np.ndarray:
        """The case of each positive item, int64 [positive items]."""
        return np.repeat(np.arange(len(self)), [len(items) for items in self.positives])

    @cached_property
    def flat(self) -> np.ndarray:
        """All positive items, int64 [positive items]."""
        return np.concatenate([np.empty(0, np.int64), *self.positives]).astype(np.int64)

    def seen(self, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """(case in the block, item) of all pairs that do not compete, sorted. Of a block: of all cases, it is large."""
        first, last = np.searchsorted(self.owner, [block.start, block.stop])
        positives = (self.owner[first:last] - block.start) * self.num_items + self.flat[first:last]
        histories = pairs(self.histories[block], self.num_items)
        rows, items = np.divmod(np.setdiff1d(histories, positives), self.num_items)
        return rows, items

    @cached_property
    def by_popularity(self) -> dict[str, np.ndarray]:
        """Case numbers by the range of training interactions of the positive item (of several: their mean).

        New items (no training interactions) are one group; deciles of the other cases follow, the least popular first.
        Items of equal popularity belong to the same group, so groups may be uneven and fewer. Empty: no two groups.
        """
        chosen = self._chosen
        if chosen is None:
            return {}
        groups = {"0": np.flatnonzero(chosen == 0)} if (chosen == 0).any() else {}
        known = np.flatnonzero(chosen)
        edges = np.quantile(chosen[known], np.arange(1, 10) / 10) if len(known) else np.empty(0)
        tenth = np.searchsorted(edges, chosen[known], side="left")
        for number in np.unique(tenth):
            inside = known[tenth == number]
            ends = chosen[inside].min(), chosen[inside].max()
            name = " to ".join(dict.fromkeys(f"{end:.0f}" if end >= 10 else f"{end:.2g}" for end in ends))
            groups[name] = np.sort(np.concatenate([groups.get(name, np.empty(0, np.int64)), inside]))
        return groups if len(groups) > 1 else {}

    @cached_property
    def _chosen(self) -> np.ndarray | None:
        """Training interactions of each case's positive items, their mean; None where they are not known."""
        if self.popularity is None:
            return None
        return np.bincount(self.owner, self.popularity[self.flat], len(self)) / np.bincount(self.owner)

    @cached_property
    def segments(self) -> dict[str, np.ndarray]:
        """Segment name -> case numbers. Quantiles are taken over these cases; the names state the limits.

        Of segments with the same cases (cold items and new items, say), the first is kept.
        """
        groups: dict[str, np.ndarray] = {}
        lengths = np.array([len(history) for history in self.histories])
        limit = int(np.quantile(lengths, COLD_SHARE, method="lower"))
        if lengths.max() > limit:
            groups[f"cold users (history of {_up_to(limit)})"] = np.flatnonzero(lengths <= limit)
            groups[f"other users (history of more than {limit})"] = np.flatnonzero(lengths > limit)
        groups |= {_popularity_name(count): inside for count, inside in self.by_popularity.items()}
        if self._chosen is not None:
            limit = int(np.quantile(self._chosen, COLD_SHARE, method="lower"))
            if self._chosen.max() > limit:
                groups[f"cold items ({_up_to(limit)} training interactions)"] = np.flatnonzero(self._chosen <= limit)
            elif not limit:
                groups[_popularity_name("0")] = np.arange(len(self))
        for name, values in self.labels.items():
            distinct, place = np.unique(values, return_inverse=True)
            if 1 < len(distinct) <= MAX_GROUPS:
                groups |= {f"{name} {value}": np.flatnonzero(place == i) for i, value in enumerate(distinct)}
        first: dict[bytes, str] = {}
        for name, inside in groups.items():
            first.setdefault(inside.tobytes(), name)
        return {name: groups[name] for name in first.values()}

    @property
    def places(self) -> dict[str, tuple[str, str]]:
        """(axis, place on it) of each segment by popularity, in the order of the axis."""
        names = {_popularity_name(count): count for count in self.by_popularity}
        return {name: (POPULARITY_AXIS, count) for name, count in names.items() if name in self.segments}


def _popularity_name(count: str) -> str:
    if count == "0":
        return "new items (no training interactions)"
    return f"items with {count} training interaction{'' if count == '1' else 's'}"


def _up_to(limit: int) -> str:
    return f"at most {limit}" if limit else "0"


@dataclass(frozen=True)
class Ranking:
    """Result of an evaluation."""

    metrics: dict[str, float]
    main: list[str]
    """names of the headline metrics"""
    cases: dict[str, np.ndarray]
    """metric -> float64 [cases], for means over cases; NaN for cases without candidates"""
    items: np.ndarray
    """int32 [cases, <= TOP], best first, equal scores by item number; −1: no further items"""
    scores: np.ndarray
    """scores of `items`, float [cases, <= TOP]"""
    protocol: str
    """description of the protocol"""


def evaluate(
    cases: Cases,
    candidates: Sequence[Candidates],
    score_block: Callable[[slice], np.ndarray],
    *,
    cutoffs: Sequence[int],
    full: bool = True,
    ties: str = "average",
    mask_seen: bool = True,
) -> Ranking:
    """Ranks by scores of all items: over the catalogue and among each set of candidates, in one pass.

    Args:
      score_block: slice of cases -> float [cases, items], higher is better; may be infinite, NaN is an error.
      full: whether to rank over the whole catalogue, too.
      ties: "average": the mean over all orders of equal scores; "against": positive items come after their equals.
      mask_seen: items of the history do not compete, except positive items.
    """
    found: dict[str, list[Ranks]] = {each.name: [] for each in candidates}
    everywhere: list[Ranks] = []
    tops = []
    began = time.perf_counter()
    for start in range(0, len(cases), BLOCK):
        block = slice(start, min(start + BLOCK, len(cases)))
        scores = np.array(score_block(block))  # a copy, to write into
        check_scores(scores, (block.stop - start, cases.num_items), start)
        first, last = np.searchsorted(cases.owner, [start, block.stop])
        owner, positives = cases.owner[first:last] - start, cases.flat[first:last]
        reached = scores[owner, positives]
        for each in candidates:
            chosen = each.items[block]
            among = np.take_along_axis(scores, np.maximum(chosen, 0), axis=1)
            found[each.name].append(_ranks_among(reached, owner, among, chosen >= 0))
        masked = np.zeros(len(scores), np.int64)
        if mask_seen:
            rows, columns = cases.seen(block)
            scores[rows, columns] = -np.inf
            masked = np.bincount(rows, minlength=len(scores))
        if full:
            everywhere.append(_ranks_in(scores, reached, owner, masked))
        tops.append(best_items(scores, min(TOP, cases.num_items)))
    _say_throughput(len(cases), cases.num_items, time.perf_counter() - began)
    result = _Result(cases, cutoffs, ties)
    if full:
        result.add_full(ranking.concatenate(everywhere), tops, mask_seen)
    for each in candidates:
        result.add(each, ranking.concatenate(found[each.name]))
    return result.done(tops)


def _say_throughput(cases: int, items: int, took: float) -> None:
    """How fast cases were scored and ranked, if it took long."""
    if took >= LONG and is_first():
        speed = f"{cases / took:,.0f} cases/s, {cases * items / took / 1e6:,.0f} million scores/s"
        say(f"ranked {cases:,} cases over {items:,} items: {speed}")


def evaluate_candidates(
    cases: Cases,
    candidates: Sequence[Candidates],
    score: Callable[[np.ndarray], np.ndarray],
    *,
    cutoffs: Sequence[int],
    ties: str = "average",
) -> Ranking:
    """Ranks by scores of candidates. The ranked items of the result are those of the first set of candidates.

    Args:
      score: item numbers int32 [cases, k], shuffled -> float [cases, k]. Shorter rows are padded with a positive item.
    """
    if not candidates:
        raise ValueError("no candidates to score: add a protocol with candidates, such as uni9.")
    result = _Result(cases, cutoffs, ties)
    tops: list[tuple[np.ndarray, np.ndarray]] = []
    rows = np.arange(len(cases))
    place = np.arange(len(cases.owner)) - np.searchsorted(cases.owner, cases.owner)  # of each positive in its case
    most = int(place.max(initial=0)) + 1
    positives = np.full((len(cases), most), -1, np.int32)
    positives[cases.owner, place] = cases.flat
    for each in candidates:
        listed = np.concatenate([positives, each.items], axis=1)
        # shuffled, so that the order tells nothing to a method that reads the whole list
        order = np.argsort(np.random.default_rng(0).random(listed.shape), axis=1)
        asked = np.take_along_axis(np.where(listed >= 0, listed, positives[:, :1]), order, axis=1)
        shuffled = np.array(score(asked))
        check_scores(shuffled, listed.shape, 0)
        scores = np.empty_like(shuffled)
        np.put_along_axis(scores, order, shuffled, axis=1)
        reached = scores[cases.owner, place]
        result.add(each, _ranks_among(reached, cases.owner, scores[:, most:], each.items >= 0))
        if not tops:
            scores = np.where(listed >= 0, scores, -np.inf)
            order = np.lexsort((listed, -scores), axis=1)[:, :TOP]
            best = scores[rows[:, None], order]
            tops = [(np.where(np.isneginf(best), -1, listed[rows[:, None], order]), best)]
    return result.done(tops)


def check_scores(scores: np.ndarray, shape: tuple[int, ...], start: int) -> None:
    """Raises ValueError for another shape, or NaN; start: number of the first case."""
    if scores.shape != shape:
        raise ValueError(f"scores of this block should have shape {list(shape)}, but have {list(scores.shape)}.")
    if np.isnan(scores).any():
        case = start + int(np.argmax(np.isnan(scores).any(axis=1)))
        raise ValueError(f"scores of case {case} hold NaN: the model may have diverged.")


# ---------------------------------------------------------------- ranks


def _ranks_in(scores: np.ndarray, reached: np.ndarray, owner: np.ndarray, masked: np.ndarray) -> Ranks:
    """Ranks of the positive items, with scores `reached`, in their rows; `masked` is the number of −∞ per row."""
    counts = np.bincount(owner, minlength=len(scores))
    better, at_least = np.empty(len(owner), np.int64), np.empty(len(owner), np.int64)
    alone = counts[owner] == 1
    single = owner[alone]
    if len(single) == len(scores):
        better[alone] = np.count_nonzero(scores > reached[:, None], axis=1)
        at_least[alone] = np.count_nonzero(scores >= reached[:, None], axis=1)
    else:
        for entry in np.flatnonzero(alone):
            better[entry] = np.count_nonzero(scores[owner[entry]] > reached[entry])
            at_least[entry] = np.count_nonzero(scores[owner[entry]] >= reached[entry])
        for row in np.flatnonzero(counts > 1):
            entries = slice(*np.searchsorted(owner, [row, row + 1]))
            rising = np.sort(scores[row])
            better[entries] = len(rising) - np.searchsorted(rising, reached[entries], side="right")
            at_least[entries] = len(rising) - np.searchsorted(rising, reached[entries], side="left")
    at_least -= np.where(np.isneginf(reached), masked[owner], 0)
    return Ranks(better, at_least - better - 1, owner)


def _ranks_among(reached: np.ndarray, owner: np.ndarray, others: np.ndarray, there: np.ndarray) -> Ranks:
    """Ranks of the positive items among the candidates of their row and each other.

    Args:
      others, there: [cases, k], scores of candidates, and whether the entry is a candidate.
    """
    mine = reached[:, None]
    better = np.count_nonzero((others[owner] > mine) & there[owner], axis=1)
    tied = np.count_nonzero((others[owner] == mine) & there[owner], axis=1)
    if len(owner) > len(others):
        starts, ends = np.searchsorted(owner, owner), np.searchsorted(owner, owner, side="right")
        for entry in np.flatnonzero(ends - starts > 1):
            fellows = reached[starts[entry] : ends[entry]]
            better[entry] += np.count_nonzero(fellows > reached[entry])
            tied[entry] += np.count_nonzero(fellows == reached[entry]) - 1
    return Ranks(better, tied, owner)


def best_items(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Item numbers int32 (−1: does not compete) and scores [cases, k] of each row's best items."""
    items = retrieve(scores, k)
    values = np.take_along_axis(scores, items, axis=1)
    return np.where(np.isneginf(values), -1, items).astype(np.int32), values


# ---------------------------------------------------------------- metrics


def main_cutoff(cutoffs: Sequence[int], size: int) -> int:
    """The k of the headline metrics for a ranking of `size` items: 10, or else the largest cutoff below `size`."""
    fitting = [k for k in cutoffs if k < size]
    if not fitting:
        raise ValueError(f"task.cutoffs are {list(cutoffs)}, but only {size} items are ranked: add a smaller cutoff.")
    return 10 if 10 in fitting else max(fitting)


def main_metric(cutoffs: Sequence[int], protocol: str, num_items: int) -> str:
    """The headline metric of a protocol; HR at the smallest cutoff if the number of candidates is unknown."""
    if protocol == "full":
        return f"NDCG@{main_cutoff(cutoffs, num_items)}"
    name, size = name_and_size(protocol)
    return f"{name} HR@{min(cutoffs)}" if size is None else f"{name} NDCG@{main_cutoff(cutoffs, size + 1)}"


class _Result:
    """Collects the metrics of one method."""

    def __init__(self, cases: Cases, cutoffs: Sequence[int], ties: str):
        if not len(cases):
            raise ValueError("ranking metrics need at least one case.")
        if ties not in ("average", "against"):
            raise ValueError(f"ties must be average or against, got {ties!r}.")
        if not cutoffs or min(cutoffs) < 1:
            raise ValueError(f"task.cutoffs must be at least 1, got {list(cutoffs)}.")
        self.cases_in, self.cutoffs, self.ties = cases, sorted(set(cutoffs)), ties
        self.several = len(cases.owner) > len(cases)
        self.metrics: dict[str, float] = {}
        self.cases: dict[str, np.ndarray] = {}
        self.main: list[str] = []
        self.protocols: list[str] = []

    def add_full(self, ranks: Ranks, tops: Sequence[tuple[np.ndarray, np.ndarray]], mask_seen: bool) -> None:
        size = self.cases_in.num_items
        k = main_cutoff(self.cutoffs, size)
        self._add("", ranks, size, None)
        first = np.concatenate([items[:, :k] for items, _ in tops])
        beyond = beyond_accuracy(first, size, self.cases_in.popularity)
        self.metrics |= {f"{name}@{k}": value for name, value in beyond.items()}
        self.main += [f"NDCG@{k}", f"HR@{k}", f"MRR@{k}"]
        seen = "seen items masked" if mask_seen else "seen items compete"
        self.protocols.append(f"full: ranked over all {size:,} items, {seen}")

    def add(self, candidates: Candidates, ranks: Ranks) -> None:
        there = (candidates.items >= 0).sum(axis=1)
        none = there == 0
        size = int(there[~none].min()) + 1
        prefix = f"{candidates.name} "
        self._add(prefix, ranks, size, none)
        last = main_cutoff(self.cutoffs, size)
        shown = [f"HR@{self.cutoffs[0]}", *(f"NDCG@{k}" for k in self.cutoffs if 1 < k <= last)]
        self.main += [prefix + name for name in shown if prefix + name in self.metrics]
        self.protocols.append(f"{candidates.name}: {candidates.description}")

    def _add(self, prefix: str, ranks: Ranks, size: int, none: np.ndarray | None) -> None:
        where = ranks.pessimistic() if self.ties == "against" else ranks
        if not self.several:
            where = Ranks(where.better, where.tied)
        last = main_cutoff(self.cutoffs, size)
        for k in (k for k in self.cutoffs if k < size):
            values = {f"HR@{k}": ranking.hit_rate(where, k)}
            if self.several:
                values[f"Recall@{k}"] = ranking.recall(where, k)
            if k > 1 or k == last or self.several:  # with one positive item NDCG@1 is HR@1
                values[f"NDCG@{k}"] = ranking.ndcg(where, k)
            if k == last:
                values[f"MRR@{k}"] = ranking.mrr(where, k)
            for name, each in values.items():
                if none is not None and none.any():
                    each = np.where(none, np.nan, each)
                self.cases[prefix + name] = each
                self.metrics[prefix + name] = float(np.nanmean(each))

    def done(self, tops: Sequence[tuple[np.ndarray, np.ndarray]]) -> Ranking:
        ties = "equal scores averaged over their orders" if self.ties == "average" else "equal scores counted against"
        items, scores = (np.concatenate(parts) for parts in zip(*tops, strict=True))
        protocol = "; ".join([*self.protocols, ties])
        return Ranking(self.metrics, self.main, self.cases, items, scores, protocol)


def beyond_accuracy(recommended: np.ndarray, num_items: int, popularity: np.ndarray | None = None) -> dict[str, float]:
    """Coverage, Gini coefficient and novelty of the recommended lists.

    coverage: share of the catalogue that is in any list. Gini: of the recommendation counts over the whole catalogue
    (0: all equal; 1 − 1/items: always the same item). novelty: mean of −log2 p over the recommended items, with p an
    item's share of the training interactions after adding one to each (Zhou et al., 2010, for shares of users).

    Args:
      recommended: item numbers [cases, k]; −1: none.
      popularity: training interactions [items]; None: no novelty.
    """
    flat = recommended[recommended >= 0]
    counts = np.sort(np.bincount(flat, minlength=num_items))
    places = np.arange(1, num_items + 1)
    result = {
        "coverage": np.count_nonzero(counts) / num_items,
        "Gini": float(2 * (places * counts).sum() / (num_items * max(counts.sum(), 1)) - (num_items + 1) / num_items),
    }
    if popularity is not None:
        share = (popularity + 1) / (popularity.sum() + num_items)
        result["novelty"] = float(-np.log2(share[flat]).mean())
    return result


# ---------------------------------------------------------------- generated answers


def answer_errors(
    answers: Sequence[Sequence[str]], names: Mapping[str, Sequence[int]], histories: Sequence[np.ndarray]
) -> dict[str, float]:
    """Shares of all answers that are invalid (not an item), duplicate (repeated in the list) or already seen.

    Args:
      answers: generated titles or ids of each case.
      names: item name -> item numbers; case and surrounding blanks are ignored. A name shared by several items counts
        as seen when all of them are.
      histories: items seen in each case.
    """
    known = {name.strip().casefold(): tuple(items) for name, items in names.items()}
    counts = dict.fromkeys(("invalid", "duplicate", "already seen"), 0)
    for listed, history in zip(answers, histories, strict=True):
        seen, before = set(np.asarray(history).tolist()), set()
        for answer in listed:
            items = known.get(answer.strip().casefold())
            what = answer.strip().casefold() if items is None else items
            counts["invalid"] += items is None
            counts["duplicate"] += what in before
            counts["already seen"] += items is not None and seen.issuperset(items)
            before.add(what)
    total = sum(map(len, answers))
    if not total:
        raise ValueError("no answers to count errors in.")
    return {name: count / total for name, count in counts.items()}
