"""Examples whose text comes again: leaks between splits, contradictory labels, duplicates and near-duplicates."""

from collections import Counter
from collections.abc import Iterator, Sequence

from instructrec_jax.labeling.duplicates import Pair
from instructrec_jax.labeling.findings import Finding, Rows


def repeats(rows: Rows, keys: Sequence[str], pairs: Sequence[Pair], one_label: bool) -> list[Finding]:
    """The findings about texts that come again.

    These examples of data.train are dropped: those with (nearly) the text of a case of data.validation or data.test; of
    equal texts with different labels, all but those with the most frequent one (all, where several are as frequent);
    those with (nearly) the text, and the answer, of an earlier example that stays.

    Args:
      keys: the different normalized texts.
      pairs: of `keys` that are nearly equal.
      one_label: whether a text has one right answer, so that different ones contradict each other.
    """
    members: dict[str, list[int]] = {key: [] for key in keys}
    for row, key in enumerate(rows.keys):
        members[key].append(row)
    found = [finding for own in members.values() if len(own) > 1 for finding in _equal(rows, own, one_label)]
    for pair in pairs:
        found += _leaks(rows, members[keys[pair.first]], members[keys[pair.second]], pair.similarity)
    gone = {finding.number for finding in found if finding.dropped}
    firsts = [next((row for row in members[key] if rows.splits[row] == "train"), None) for key in keys]
    near: list[tuple[int, int, float]] = []
    for pair in pairs:
        one, other = firsts[pair.first], firsts[pair.second]
        if one is not None and other is not None:
            near.append((min(one, other), max(one, other), pair.similarity))
    for first, second, similarity in sorted(near, key=lambda each: (each[1], each[0])):
        same = rows.answer(first) == rows.answer(second)
        if {first, second} & gone or not same and not one_label:
            continue
        if same:
            gone.add(second)
        found.append(rows.finding("near-duplicate", second, same, first, similarity))
    return found


def _equal(rows: Rows, own: Sequence[int], one_label: bool) -> Iterator[Finding]:
    """The findings about the rows of one text."""
    of = {split: [row for row in own if rows.splits[row] == split] for split in ("train", "validation", "test")}
    yield from _between(rows, of, of, 1.0)
    train = of["train"]
    if not train:
        return
    leaks = len(train) < len(own)
    answers = Counter(map(rows.answer, train)).most_common()
    best = answers[0][0] if len(answers) == 1 or answers[0][1] > answers[1][1] else None
    if one_label and len(answers) > 1:
        for row in train:
            other = next(each for each in train if rows.answer(each) != rows.answer(row))
            yield rows.finding("contradiction", row, leaks or rows.answer(row) != best, other, 1.0)
    firsts: dict[str, int] = {}
    for row in train:
        first = firsts.setdefault(rows.answer(row), row)
        if first != row:
            yield rows.finding("duplicate", row, True, first, 1.0)


def _leaks(rows: Rows, some: Sequence[int], others: Sequence[int], similarity: float) -> Iterator[Finding]:
    """The leaks between the rows of two texts."""
    mine, theirs = (
        {split: [row for row in each if rows.splits[row] == split] for split in ("train", "validation", "test")}
        for each in (some, others)
    )
    yield from _between(rows, mine, theirs, similarity)
    yield from _between(rows, theirs, mine, similarity)


def _between(
    rows: Rows, mine: dict[str, list[int]], theirs: dict[str, list[int]], similarity: float
) -> Iterator[Finding]:
    """Rows of data.train that are in data.test or data.validation, and rows of data.validation in data.test."""
    outside = theirs["test"] or theirs["validation"]
    for row in mine["train"] if outside else ():
        yield rows.finding("leak", row, True, outside[0], similarity)
    for row in mine["validation"] if theirs["test"] else ():
        yield rows.finding("leak", row, False, theirs["test"][0], similarity)
