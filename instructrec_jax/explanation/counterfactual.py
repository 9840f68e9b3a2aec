"""Counterfactuals: the smallest change of a text or history, found greedily, with which a run answers something else.

    1. every change of one word or item alone; if one suffices, the search ends
    2. the best change of each word and item, in the order of their effects: one more at a time, until the answer is new
    3. changes that are not needed are undone, until each single one is

So undoing one change gives the old answer back; a smaller set of other changes may exist. Each round is answered in
batches, and the result is answered alone, by the code of `predict`. Greedy search by effects with pruning as in SEDC
(Martens & Provost, 2014, "Explaining data-driven document classifications"), with synonyms and items beside removals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.augmentation.synonyms import WORDNET, open_thesaurus
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.prompts import render
from instructrec_jax.explanation.changes import REPLACEMENTS, Change, changed, single_changes
from instructrec_jax.explanation.firmness import Outcome, Written, firmness, outcome
from instructrec_jax.runs.predictions import Record, fields_of, rows_of, where_of
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.kinds import as_ranking
from instructrec_jax.tasks.objective import Choice

TOP = 1000  # items of a ranking that are compared
ROUND = 16  # sets of changes that grow, answered at a time
BUDGET = 500


@dataclass(frozen=True)
class Said:
    """What the run answered, and the numbers of the answers before and after, by their names."""

    prediction: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Counterfactual:
    """A changed text or history that is answered otherwise.

    Attributes:
      to: the outcome that was looked for; None: any other.
      after: None: none was found, and `reason` says why.
      changes: in the order of their effects.
      minimal: whether it was tried that undoing any single change gives the old answer back.
      calls: texts that the run answered.
    """

    text: str
    history: tuple[str, ...]
    to: str | None
    before: Said
    measure: str
    after: Said | None = None
    changes: tuple[Change, ...] = ()
    changed_text: str | None = None
    changed_history: tuple[str, ...] | None = None
    minimal: bool = False
    calls: int = 0
    budget: int = BUDGET
    reason: str | None = None

    def to_record(self) -> dict[str, object]:
        """JSON of all attributes."""
        found: dict[str, object] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("before", "after"):
            said = found[name]
            found[name] = {"prediction": said.prediction, **said.numbers} if isinstance(said, Said) else None
        found["changes"] = [change.to_record() for change in self.changes]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass
class _Search:
    """The search for one example; `answer` is the run's."""

    counterfactuals: "Counterfactuals"
    example: Example
    before: Outcome
    to: str | None
    unseen: frozenset[str]
    written: Written | None
    calls: int = 1  # of the answer before
    ended: bool = False  # for want of budget
    cut: bool = False  # whether some single changes were not tried, for the same reason

    def ask(self, sets: Sequence[Sequence[Change]]) -> list[tuple[tuple[Change, ...], Outcome, float]]:
        """(changes, what the run answers, its firmness) of each set that it can read, within the budget."""
        if render(self.example):  # a text without any word is answered by some networks, but says nothing
            sets = [each for each in sets if render(changed(self.example, each))]
        room = self.counterfactuals.budget - 1 - self.calls  # the last one confirms the result
        self.ended = self.ended or len(sets) > room
        sets = sets[: max(0, room)]
        examples = [changed(self.example, each) for each in sets]
        self.calls += len(sets)
        found = self.counterfactuals.outcomes(examples, self.unseen)
        there = [n for n, each in enumerate(found) if each is not None]
        firm = self.firmness([examples[n] for n in there], [each for each in found if each is not None])
        return [(tuple(sets[n]), each, f) for n, f in zip(there, firm, strict=True) if (each := found[n]) is not None]

    def firmness(self, examples: Sequence[Example], found: Sequence[Outcome]) -> list[float]:
        if self.written is None:
            return [firmness(each, self.before, self.to) for each in found]
        return self.written.firmness(examples, self.before.said, self.to) if examples else []

    def is_other(self, found: Outcome) -> bool:
        return found.is_other(self.before, self.to)

    def run(self) -> tuple[tuple[Change, ...], bool] | None:
        """(changes, whether they are minimal); None: none was found."""
        (start,) = self.firmness([self.example], [self.before])
        changes = self.counterfactuals.changes(self.example, self.before, self.to)
        changes.sort(key=lambda change: change.by is not None)  # removals first, where the budget is short
        most = self.counterfactuals.budget // 2  # the rest is for changes together
        self.cut = len(changes) > most
        singles = self.ask([[change] for change in changes[:most]])
        if flipped := [each for each in singles if self.is_other(each[1])]:
            return min(flipped, key=lambda each: each[2])[0], True
        best: dict[tuple[str, str], tuple[float, Change]] = {}
        for (change,), _, firm in singles:
            if firm < min(start, best.get(change.unit, (np.inf,))[0]):
                best[change.unit] = firm, change
        order = [change for _, change in sorted(best.values(), key=lambda each: each[0])]
        sets = [order[:count] for count in range(2, len(order) + 1)]
        for first in range(0, len(sets), ROUND):
            for chosen, found, _ in self.ask(sets[first : first + ROUND]):
                if self.is_other(found):
                    return self.pruned(chosen)
        return None

    def pruned(self, chosen: tuple[Change, ...]) -> tuple[tuple[Change, ...], bool]:
        """The changes without those that are not needed, and whether the budget sufficed to know that."""
        while len(chosen) > 1 and not self.ended:
            fewer = [chosen[:n] + chosen[n + 1 :] for n in range(len(chosen))]
            flipped = [each for each in self.ask(fewer) if self.is_other(each[1])]
            if not flipped:
                break
            chosen = min(flipped, key=lambda each: each[2])[0]
        return chosen, not self.ended or len(chosen) == 1


class Counterfactuals:
    """Finds counterfactuals of an opened run, which may be an ensemble.

    Args:
      to: the label, candidate or item (id or title) or text that the run should answer; None: anything else.
      budget: texts that the run answers for each example, at most.
      thesaurus: see `open_thesaurus`; "" where there is no WordNet: words are only left out.

    Raises ValueError for a run that predicts nothing or reads pictures or sounds, and a budget below 3.
    """

    def __init__(self, run: Run, to: str | None = None, budget: int = BUDGET, thesaurus: str = ""):
        if run.task.context.tokenizer is None:
            raise ValueError("counterfactuals change words and histories: there are none for pictures or sounds.")
        if budget < 3:
            raise ValueError(f"--budget is {budget}, but a search needs at least 3 answers: raise it.")
        self.run, self.to, self.budget = run, to, budget
        self.thesaurus = open_thesaurus(thesaurus) if thesaurus or WORDNET.exists() else None
        self.ranking = as_ranking(run.task)
        self.asker = run.asker(1 if self.ranking is None else min(TOP, len(self.ranking.catalogue)))

    def explain(self, records: Iterable[Record], wheres: Sequence[str] | None = None) -> list[Counterfactual]:
        """One for each record, in order. Raises BadExample for a record that cannot be answered, with its place.

        Args:
          wheres: as in `Explainer.explain`.
        """
        found = []
        for number, row in enumerate(rows_of(list(records), fields_of(self.run.config))):
            where = where_of(number, wheres)
            example = self.asker.example(row, where)
            try:
                found.append(self.of_example(example))
            except BadExample as error:
                raise error.at(where) from None
            except ValueError as error:
                raise BadExample("", "no counterfactual", str(error), where) from None
        return found

    def of_example(self, example: Example) -> Counterfactual:
        (answer,) = self.asker.answers([example])[0]
        assert answer is not None  # what cannot be answered is an error
        masks = self.ranking is not None and self.ranking.config.mask_seen
        unseen = frozenset(example.history if masks else ())  # an item that was hidden alone is no other answer
        before = outcome(answer, unseen)
        to = self._to(before)
        if to in before.ids:
            raise ValueError(f"the run answers {before.said!r} already: give another --to.")
        if not before.said:
            raise ValueError("the network writes nothing for this prompt, so no change of it has another text.")
        written = None if before.numbers else Written(self.run, example)
        search = _Search(self, example, before, to, unseen, written)
        found = search.run()
        if found is None:
            return self._result(search, (), False, None)
        (after,) = self.outcomes([changed(example, found[0])], unseen)  # alone, as `predict` answers it
        search.calls += 1
        return self._result(search, *found, after)

    def outcomes(self, examples: Sequence[Example], unseen: frozenset[str]) -> list[Outcome | None]:
        """What the run answers; None for a text that it cannot read, such as an empty one."""
        answers = self.asker.answers(examples, skip=True)[0] if examples else []
        return [None if answer is None else outcome(answer, unseen) for answer in answers]

    def changes(self, example: Example, before: Outcome, to: str | None) -> list[Change]:
        """Every single change; items are replaced by popular ones (drawn with the run's seed) that are no answer."""
        ranking, items = self.ranking, list(dict.fromkeys(example.history))
        if ranking is None or not ranking.reads_history or not items:
            return single_changes(example, self.thesaurus, {})
        rng, chances = np.random.default_rng(self.run.config.seed), ranking.popularity
        known = {*items, *before.ids, to}
        count = min(len(chances), REPLACEMENTS * len(items) + len(known))
        drawn = rng.choice(len(chances), count, replace=False, p=chances).tolist()
        others = [item for number in drawn if (item := ranking.catalogue.ids[number]) not in known]
        return single_changes(example, self.thesaurus, {item: others[n :: len(items)] for n, item in enumerate(items)})

    def _to(self, before: Outcome) -> str | None:
        """The id of `to`. Raises ValueError for one that the run never answers."""
        if self.to is None or not before.numbers:
            return self.to
        if self.ranking is not None:
            return self.ranking.catalogue.ids[self.ranking.explained_items(Choice(self.to), lambda: 0)[0]]
        if self.to not in before.numbers:
            names = ", ".join(map(repr, list(before.numbers)[:20]))
            raise ValueError(f"--to is {self.to!r}, but the run answers with {names}: choose one of them.")
        return self.to

    def _result(
        self, search: _Search, changes: tuple[Change, ...], minimal: bool, after: Outcome | None
    ) -> Counterfactual:
        example, before = search.example, search.before
        confirmed = after is not None and search.is_other(after)
        about = Counterfactual(
            text=render(example),
            history=self._names(example.history),
            to=self.to,
            before=self._said(before, before if after is None or not confirmed else after, before),
            measure=before.measure,
            calls=search.calls,
            budget=self.budget,
        )
        if after is None or not confirmed:
            return replace(about, reason=self._reason(search, changes))
        other = changed(example, changes)
        return replace(
            about,
            after=self._said(after, before, after),
            changes=tuple(map(self._named, changes)),
            changed_text=render(other),
            changed_history=self._names(other.history),
            minimal=minimal,
        )

    def _said(self, found: Outcome, *others: Outcome) -> Said:
        ids = dict.fromkeys(name for each in (found, *others) for name in each.ids if name in found.numbers)
        return Said(found.said, {self._name(name): found.numbers[name] for name in ids})

    def _reason(self, search: _Search, changes: Sequence[Change]) -> str:
        if changes:
            return "changes that were found in a batch were not confirmed alone: the answers are nearly equal there"
        if search.ended or search.cut:
            return f"none was found within the budget of {self.budget} answers: raise --budget"
        return "none was found: all changes that bring the answer nearer to another one, together, do not change it"

    def _named(self, change: Change) -> Change:
        if change.kind == "word":
            return change
        return replace(change, what=self._name(change.what), by=None if change.by is None else self._name(change.by))

    def _names(self, items: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(self._name, items))

    def _name(self, name: str) -> str:
        """The title of an item; other names as they are."""
        if self.ranking is None or name not in self.ranking.catalogue.index:
            return name
        return self.ranking.catalogue.name(self.ranking.catalogue.index[name])
