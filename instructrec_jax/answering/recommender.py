"""A run, or a fusion of two rankers, opened to recommend items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from numbers import Integral
from pathlib import Path

import numpy as np
from tqdm import tqdm

from instructrec_jax.answering.evidence import (
    Evidence,
    Part,
    contributions,
    strongest,
    without_word,
    words_of,
)
from instructrec_jax.answering.filters import matching
from instructrec_jax.answering.ranker import (
    Best,
    FusedRanker,
    Ranker,
    Scorer,
    chosen_fusion,
    kept_fusion,
    open_second,
)
from instructrec_jax.answering.requests import Answer, Recommendation, Request, split_titles
from instructrec_jax.answering.served import likeness_to, mixed, understanding_of
from instructrec_jax.answering.titles import Ask, Titles, resolve
from instructrec_jax.data.example import Example, check_example
from instructrec_jax.data.listed import check_type, listed
from instructrec_jax.ranking.catalogue import Splits, has_splits
from instructrec_jax.ranking.fusion import Fusion, retrieve
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded

REQUESTS = 64  # requests per batch
MOST_CANDIDATES = 1000  # items per request, for a run that reads each item with the request
ALONE = "none"  # as a hybrid: none, also where training chose one
MOST_PARTS = 50  # evidence is computed for the last items of a history


@dataclass(frozen=True)
class Understood:
    """A request with its titles and conditions resolved.

    Attributes:
      history: item numbers, oldest first.
      allowed: bool [items].
      likeness: of each item's picture to the request's, or of each item to the one that the request wants others like,
        float [items]; −inf for an item without a picture. None: the request has neither.
    """

    request: Request
    answer: Answer
    history: list[int]
    allowed: np.ndarray
    k: int
    likeness: np.ndarray | None = None


@dataclass(frozen=True)
class _Options:
    """See `Recommender.recommend`."""

    include_seen: bool
    skip_unknown: bool
    evidence: bool
    ask: Ask | None


class Recommender:
    """An opened run that answers requests.

    Args:
      run: run directory of a retrieval, sequence, reranker or language_model_ranking task, or that run, opened.
      rerank: run directory, on the same catalogue, that reranks the first run's best items.
      hybrid: instead of `rerank`: run directory or baseline (coKNN, popularity ...) whose scores are mixed in; "none":
        the run alone. Without both, the hybrid that training chose (`evaluation.fuse`), unless there are new items.
      weight: weight of the second ranker, from 0 to 1; None: as tuned by `evaluate --rerank` or `--hybrid`.
      retrieve: number of items to rerank; None: as tuned, or 100 with a given weight.
      items: file of items that the runs were not trained on (see `answering.new_items`); for a path.
      overrides: settings of the first run, as on the command line; for a path.
      step: step of the first run's checkpoint; None: the best; for a path.

    Raises:
      ValueError: a path that is not a run, another task, different catalogues, a weight that has not been tuned, or an
        invalid file of items.
    """

    def __init__(
        self,
        run: str | Path | Run,
        *,
        rerank: str | Path | None = None,
        hybrid: str | Path | None = None,
        weight: float | None = None,
        retrieve: int | None = None,
        items: str | Path | None = None,
        overrides: Sequence[str] = (),
        step: int | None = None,
    ):
        check_type(run, "run", (str, Path, Run), "the path of a run directory")
        self.first = Ranker(run) if isinstance(run, Run) else Ranker.open(run, overrides, step=step, items=items)
        self.second: Scorer | None = None
        self.fused: FusedRanker | None = None
        self.asked_to_fuse = False
        self.catalogue = self.first.catalogue
        self.titles = Titles(self.catalogue)
        self.understanding = understanding_of(
            self.first, self.titles, compares=rerank is None and hybrid in (None, ALONE)
        )
        if rerank is not None and hybrid is not None:
            raise ValueError("--rerank and --hybrid cannot be combined: choose one of them.")
        name = rerank if rerank is not None else hybrid
        if name is None and items is None and (chosen := chosen_fusion(self.first)) is not None:
            self.second, self.fused = chosen.second, chosen
        if name is None or hybrid == ALONE:
            return
        self.asked_to_fuse = True
        self.second = open_second(self.first, name, reranks=rerank is not None, items=items)
        if weight is None:
            fusion = kept_fusion(self.first, self.second, str(name), reranks=rerank is not None)
            if retrieve not in (None, fusion.k):
                raise ValueError(
                    f"--retrieve is {retrieve}, but the weight of {name} was tuned for {fusion.k}: leave out "
                    "--retrieve, tune it with `evaluate`, or give a weight."
                )
        else:
            fusion = Fusion(str(name), weight, (100 if retrieve is None else retrieve) if rerank is not None else None)
        self.fused = FusedRanker(self.first, self.second, fusion)

    @cached_property
    def users(self) -> dict[str, np.ndarray]:
        """User id -> items of all splits, oldest first."""
        if not has_splits(self.first.folder):
            return {}
        splits = Splits.load(self.first.folder, self.catalogue)
        each = zip(splits.train, splits.validation, splits.test, strict=True)
        return {user: np.concatenate(items) for user, items in zip(splits.user_ids, each, strict=True)}

    def recommend(
        self,
        requests: str | Request | Mapping[str, object] | Sequence[str | Request | Mapping[str, object] | Answer],
        k: int = 10,
        *,
        include_seen: bool = False,
        skip_unknown: bool = False,
        evidence: bool = True,
        ask: Ask | None = None,
    ) -> list[Answer]:
        """Answers in the order of the requests. An invalid request gets an `error`; the others are answered.

        Args:
          requests: an instruction, a request (or its fields as a mapping), or a list of these; an Answer among them (of
            an unreadable record) is returned unchanged.
          k: number of items for requests without their own `k`.
          include_seen: also recommend items of the history.
          skip_unknown: leave out titles that are not in the catalogue, with a note.
          evidence: compute evidence, with one more score per word and item of the history.
          ask: asks a person about ambiguous titles; None: they are errors.
        """
        options = _Options(include_seen, skip_unknown, evidence, ask)
        check_type(k, "k", (Integral,), "a number of items")
        asked = _requests(requests)
        answers = []
        blocks = range(0, len(asked), REQUESTS)
        for start in tqdm(blocks, disable=None if len(blocks) > 1 else True):
            understood: list[Understood] = []
            for request in asked[start : start + REQUESTS]:
                if isinstance(request, Answer):
                    answers.append(request)
                    continue
                answer = Answer(id=request.id, user=request.user)
                answers.append(answer)
                try:
                    understood.append(self._understand(request, answer, k if request.k is None else request.k, options))
                except ValueError as error:
                    answer.error = str(error)
            self._answer(understood, options)
        return answers

    def _understand(self, request: Request, answer: Answer, k: int, options: _Options) -> Understood:
        most = None if self.fused is None else self.fused.fusion.k
        if k < 1:
            raise ValueError(f"k must be at least 1, but is {k}.")
        if most is not None and k > most:
            raise ValueError(f"k is {k}, but only {most} items are reranked: raise --retrieve.")

        def numbers(name: str, texts: Sequence[str]) -> list[int]:
            listed = split_titles(self.titles, texts)
            try:
                found, notes = resolve(self.titles, listed, skip_unknown=options.skip_unknown, ask=options.ask)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            answer.notes += [f"{name}: {note}" for note in notes]
            return found

        history = [*self._history_of(request.user), *numbers("history", request.history)]
        if request.prompt and request.instruction:
            raise ValueError("a request cannot have both an instruction and a prompt: remove one of them.")
        asks = bool(history or request.instruction.strip() or request.prompt.strip())
        if not asks and request.image is None:
            why = " (all titles of the history were left out)" if request.history else ""
            raise ValueError(f"the request is empty{why}: give a user, a history, an instruction or an image.")
        answer.history = [self.catalogue.name(item) for item in history]
        allowed = matching(self.catalogue, request.where)
        allowed[numbers("exclude", request.exclude)] = False
        if not options.include_seen:
            allowed[history] = False
        likeness = self._likeness(request)
        reading = self.understanding.read(request.instruction)
        allowed, unread = self.understanding.allowed(reading, allowed)
        answer.notes += [*reading.notes, *unread]
        if reading.like:
            alike = likeness_to(self.first, reading.like)
            likeness = alike if likeness is None else likeness + alike
        request = replace(request, instruction=reading.wish)
        if likeness is not None and not asks:
            allowed &= np.isfinite(likeness)
        left = int(np.count_nonzero(allowed))
        if not left:
            raise ValueError("no item is left to recommend: relax the conditions (where), or include seen items.")
        if left < k:
            answer.notes.append(f"only {left} items are left, fewer than k = {k}.")
        return Understood(request, answer, history, allowed, min(k, left), likeness)

    def _likeness(self, request: Request) -> np.ndarray | None:
        """How much each item's picture is like the request's; None for a request without a picture."""
        if request.image is None:
            return None
        if self.asked_to_fuse:
            raise ValueError("an image cannot be combined with --rerank or --hybrid: leave one of them out.")
        found = self.first.task.looks_like(self.first.predict, request.image, "the image of the request")
        if not np.isfinite(found).any():
            raise ValueError("no item of the catalogue has a picture (column image), so none can be like the image.")
        return found

    def _history_of(self, user: str | None) -> list[int]:
        if user is None:
            return []
        if user in self.users:
            return [int(item) for item in self.users[user]]
        if not self.users:
            raise ValueError(f"{self.first.folder} has no users (splits/): give titles as the history instead.")
        near = get_close_matches(user, self.users, 3, 0.5)
        hint = f" The nearest ids: {', '.join(near)}." if near else f" An id looks like {next(iter(self.users))!r}."
        raise ValueError(f"unknown user {user!r} (of {len(self.users):,} users).{hint}")

    # -------------------------------------------------------------- scores

    def _answer(self, understood: list[Understood], options: _Options) -> None:
        """Fills in the answers of a batch of requests."""
        asked: list[tuple[Understood, Encoded]] = []
        for each in understood:
            if each.likeness is not None and not (each.history or each.request.instruction or each.request.prompt):
                self._nearest(each, each.likeness)
                continue
            try:
                example = self._example(each)
                encoded, cut = self._encode(self.first, example)
                each.answer.prompt = example.instruction
            except ValueError as error:
                each.answer.error = str(error)
                continue
            each.answer.notes += cut
            if unread := self._rankers[-1].unread(each.request.instruction):
                each.answer.notes.append(f"the model's tokenizer has no tokens for {', '.join(unread)}.")
            asked.append((each, encoded))
        for group in self._groups(asked):
            self._fill(group, options)

    def _nearest(self, each: Understood, likeness: np.ndarray) -> None:
        """Fills in the items whose pictures are most like the request's."""
        scores = np.where(each.allowed, likeness.astype(np.float64), -np.inf)
        items = retrieve(scores[None], each.k)[0]
        each.answer.recommendations = [
            Recommendation(self.catalogue.ids[item], self.catalogue.name(item), float(scores[item]), rank)
            for rank, item in enumerate(items, 1)
        ]
        without = int(np.count_nonzero(~np.isfinite(likeness)))
        if without:
            each.answer.notes.append(f"{without:,} items have no picture, so they are left out.")

    def _groups(self, asked: list[tuple[Understood, Encoded]]) -> list[list[tuple[Understood, Encoded]]]:
        """Batches for ranking: all requests, but each by itself that has a picture, or if the run reads each item with
        the request."""
        if self.first.task.retrieves:
            pictured = [pair for pair in asked if pair[0].likeness is not None]
            others = [pair for pair in asked if pair[0].likeness is None]
            return [*([others] if others else []), *([pair] for pair in pictured)]
        for each, _ in asked:
            if (items := int(each.allowed.sum())) > MOST_CANDIDATES:
                each.answer.error = (
                    f"this run reads every item together with the request, so it ranks at most {MOST_CANDIDATES:,} "
                    f"items, but {items:,} are left. Use it as --rerank of a run that retrieves, or narrow the choice "
                    "with --where."
                )
        return [[pair] for pair in asked if pair[0].answer.error is None]

    def _fill(self, asked: list[tuple[Understood, Encoded]], options: _Options) -> None:
        try:
            found = self._best(asked)
        except ValueError as error:
            if len(asked) > 1:
                raise
            asked[0][0].answer.error = str(error)
            return
        each_items = [found.items[row, : each.k] for row, (each, _) in enumerate(asked)]
        moved = self._evidence(asked, each_items, found.units) if options.evidence else None
        for row, (each, _) in enumerate(asked):
            reasons: Sequence[Sequence[Evidence]] = [()] * each.k if moved is None else moved[row]
            each.answer.recommendations = [
                Recommendation(self.catalogue.ids[item], self.catalogue.name(item), float(score), rank, reason)
                for rank, (item, score, reason) in enumerate(
                    zip(each_items[row], found.scores[row], reasons, strict=False), 1
                )
            ]

    def _best(self, asked: list[tuple[Understood, Encoded]]) -> Best:
        cases = [encoded for _, encoded in asked]
        allowed, k = np.stack([each.allowed for each, _ in asked]), max(each.k for each, _ in asked)
        if (likeness := asked[0][0].likeness) is not None:
            return self._mixed(cases, allowed, likeness, k)
        if self.fused is not None:
            others = self.fused.second.encode([encoded.example for encoded in cases])
            seen = [np.unique([i for i in each.history if not each.allowed[i]]).astype(np.int64) for each, _ in asked]
            return self.fused.best(cases, others, seen, allowed, k)
        if self.first.task.retrieves:
            return self.first.best(cases, allowed, k)
        items = np.flatnonzero(allowed[0])[None]
        scores = np.asarray(self.first.scores(cases, items), np.float64)
        order = retrieve(scores, k)
        best = np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)
        return Best(*best, (np.ones((1, 1)),))

    def _mixed(self, cases: list[Encoded], allowed: np.ndarray, likeness: np.ndarray, k: int) -> Best:
        """The best items by the run and by likeness (see `served.mixed`)."""
        scores, unit = mixed(self.first.scores(cases), likeness, allowed[0])
        scores = np.where(allowed, scores, -np.inf)
        items = retrieve(scores, k)
        return Best(items, np.take_along_axis(scores, items, 1), (unit,))

    @property
    def _rankers(self) -> list[Ranker]:
        return [scorer for scorer in (self.first, self.second) if isinstance(scorer, Ranker)]

    def _told(self, each: Understood) -> list[int]:
        """The items of the history that the prompt names, if one of the rankers reads them there."""
        tells = any(ranker.tells_history for ranker in self._rankers)
        return each.history[-self.first.wording.titles :] if tells else []

    def _example(self, each: Understood, left_out: "_LeftOut | None" = None) -> Example:
        """A request (optionally without a part) as an example phrased like the training data, for all rankers."""
        item, word = (None, None) if left_out is None else (left_out.item, left_out.word)
        history = [other for other in each.history if other != item]
        told = [other for other in self._told(each) if other != item]
        request = each.request
        wish, prompt = (
            text if word is None else without_word(text, word) for text in (request.instruction, request.prompt)
        )
        text = prompt if request.prompt else self.first.wording.prompt(self.catalogue, told, wish.strip())
        # Tasks encode examples with a target; scores do not depend on it, so any item serves.
        placeholder = self.catalogue.ids[0]
        ids = tuple(self.catalogue.ids[number] for number in history)
        name = "request" if request.id is None else f"request {request.id}"
        return check_example(Example(instruction=text, output=placeholder, history=ids, id=name))

    def _encode(self, ranker: Scorer, example: Example) -> tuple[Encoded, list[str]]:
        """The example encoded for a ranker, and notes on truncation."""
        counts = ranker.task.context.counts if isinstance(ranker, Ranker) else {}
        before = dict(counts)
        encoded = ranker.encode([example])[0]
        return encoded, [
            f"{what}: {n - before.get(what, 0)}." for what, n in counts.items() if n != before.get(what, 0)
        ]

    # -------------------------------------------------------------- evidence

    def _evidence(
        self, asked: Sequence[tuple[Understood, Encoded]], items: Sequence[np.ndarray], units: Sequence[np.ndarray]
    ) -> list[list[list[Evidence]]]:
        """The evidence of each request and recommended item (see `answering.evidence`).

        The standardization of fused scores stays fixed while parts are left out.
        """
        size = max(len(each) for each in items)
        # pad rows to one length by repeating the last item
        square = np.stack([each[np.minimum(np.arange(size), len(each) - 1)] for each in items])
        scorers: list[Scorer] = [self.first] if self.second is None else [self.first, self.second]
        # an image is mixed with the first ranker alone
        used = [(scorer, unit) for scorer, unit in zip(scorers[: len(units)], units, strict=True) if np.any(unit)]
        parts = [self._parts(each, [scorer for scorer, _ in used]) for each, _ in asked]
        reads: list[list[list[Encoded]]] = []  # [request][ranker]: the full request, then without each part
        for place, (each, _) in enumerate(asked):
            try:
                reads.append([self._without_each(scorer, each, parts[place]) for scorer, _ in used])
            except ValueError as error:
                each.answer.notes.append(f"no evidence: {error}")
                parts[place] = []
                reads.append([self._without_each(scorer, each, []) for scorer, _ in used])
        totals = [np.zeros((len(own), square.shape[1])) for own in parts]
        for number, (scorer, unit) in enumerate(used):
            own = [each[number] for each in reads]
            moved = contributions(scorer.scores, [each[0] for each in own], [each[1:] for each in own], square)
            totals = [total + values * unit[row] for row, (total, values) in enumerate(zip(totals, moved, strict=True))]
        return [
            [strongest([part.part for part in own], total[:, place]) for place in range(len(each))]
            for own, total, each in zip(parts, totals, items, strict=True)
        ]

    def _without_each(self, scorer: Scorer, each: Understood, parts: Sequence["_LeftOut"]) -> list[Encoded]:
        """The full request, then without each part, encoded for a ranker."""
        left_out = [_LeftOut(Part("", "")), *parts]
        return scorer.encode([self._example(each, part) for part in left_out])

    def _parts(self, each: Understood, scorers: Sequence[Scorer]) -> list["_LeftOut"]:
        """The items of the history that a ranker reads, and the words of the instruction."""
        reads_all = any(not isinstance(s, Ranker) or s.task.reads_history for s in scorers)
        history = each.history if reads_all else self._told(each)
        items = [
            _LeftOut(Part("history", self.catalogue.name(item)), item=item)
            for item in dict.fromkeys(history[-MOST_PARTS:])
        ]
        words = words_of(each.request.instruction or each.request.prompt)
        return [*items, *(_LeftOut(Part("word", word), word=word) for word in words)]


@dataclass(frozen=True)
class _LeftOut:
    """A part of a request: an item of its history, or a word of its instruction."""

    part: Part
    item: int | None = None
    word: str | None = None


def _requests(requests: object) -> list[Request | Answer]:
    wanted = "an instruction, a Request, its fields as a dictionary, or a list of these"
    found: list[Request | Answer] = []
    for each in listed(requests, "requests", (str, Request, Mapping, Answer), wanted):
        if isinstance(each, Mapping):
            found.append(Request.from_record(each))
        elif isinstance(each, Request | Answer):
            found.append(each)
        else:
            found.append(Request(instruction=str(each)))
    return found
