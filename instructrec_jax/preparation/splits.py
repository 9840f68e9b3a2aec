"""Filters and splits of interactions: one per user and item, k-core, length limit, held-out parts."""

import numpy as np

from instructrec_jax.ranking.catalogue import Catalogue, Interactions, Splits

PIECE = 2_000_000  # interactions whose repeats are looked for at once


def first_per_item(interactions: Interactions) -> Interactions:
    """Each user's first interaction with each item, sorted by user and time.

    With repeats, the mask of seen items would hide a target, and a test target could be in the user's training
    sequence.
    """
    ordered = interactions.by_user()
    width, first = int(ordered.item.max(initial=0)) + 1, np.zeros(len(ordered), bool)
    start = 0
    while start < len(ordered):  # whole users at a time: sorting all at once takes more memory and time
        stop = int(np.searchsorted(ordered.user, ordered.user[min(start + PIECE, len(ordered)) - 1], side="right"))
        key = ordered.user[start:stop].astype(np.int64) * width + ordered.item[start:stop]
        first[start + np.unique(key, return_index=True)[1]] = True
        start = stop
    return ordered if first.all() else ordered.take(first)


def at_least(interactions: Interactions, min_rating: float | None) -> Interactions:
    """The interactions with at least the rating `min_rating`; all if it is None."""
    if min_rating is None:
        return interactions
    if interactions.rating is None:
        raise ValueError(f"min_rating is {min_rating}, but this source has no ratings: remove the setting.")
    return interactions.take(interactions.rating >= min_rating)


def k_core(catalogue: Catalogue, interactions: Interactions, k: int) -> tuple[Catalogue, Interactions]:
    """The largest subset in which every user and every item has at least k interactions.

    Users and items below k are removed until all have k; the rest are renumbered in the old order. k = 0 keeps items
    without interactions. Raises ValueError for a negative k and an empty result.
    """
    if k < 0:
        raise ValueError(f"k_core must be 0 or more, got {k}.")
    keep = np.ones(len(interactions), bool)
    user, item = interactions.user, interactions.item
    while True:
        users = np.bincount(user, minlength=len(interactions.user_ids))
        items = np.bincount(item, minlength=len(catalogue))
        still = (users >= k)[user] & (items >= k)[item]
        if still.all():
            break
        keep[keep] = still
        user, item = user[still], item[still]
    if not len(user):
        raise ValueError(f"the {k}-core filter leaves none of {len(interactions)} interactions: lower k_core.")
    user_numbers, item_numbers = np.flatnonzero(users >= max(k, 1)), np.flatnonzero(items >= k)
    kept = interactions if keep.all() else interactions.take(keep)
    renumbered = Interactions(
        [interactions.user_ids[number] for number in user_numbers],
        _new_numbers(user_numbers, len(users))[kept.user],
        _new_numbers(item_numbers, len(items))[kept.item],
        kept.timestamp,
        kept.rating,
    )
    return catalogue.take(item_numbers), renumbered


def _new_numbers(kept: np.ndarray, count: int) -> np.ndarray:
    """Old number -> new number, int32 [count]; what is not kept has no meaning."""
    numbers = np.zeros(count, np.int32)
    numbers[kept] = np.arange(len(kept))
    return numbers


def most_recent(interactions: Interactions, limit: int | None) -> Interactions:
    """Each user's last `limit` interactions (None: all), sorted by user and time."""
    if limit is None:
        return interactions
    if limit < 1:
        raise ValueError(f"sequence_limit must be at least 1, got {limit}; null keeps whole sequences.")
    ordered = interactions.by_user()
    ends = np.cumsum(np.bincount(ordered.user, minlength=len(ordered.user_ids)))
    return ordered.take(np.flatnonzero(ends[ordered.user] - np.arange(len(ordered)) <= limit))


# --- train, validation and test ---


def check_split(how: str, validation: float, test: float) -> None:
    """Raises ValueError for settings that `split` does not accept."""
    if how not in ("leave_one_out", "ratio", "global_time"):
        raise ValueError(f"unknown split {how!r}; choose leave_one_out, ratio or global_time.")
    if how != "leave_one_out" and not (0 <= validation and 0 < test and validation + test < 1):
        raise ValueError(
            f"validation {validation} and test {test} must be shares of the interactions: test above 0, and their sum "
            "below 1."
        )


def split(interactions: Interactions, how: str, validation: float, test: float) -> Splits:
    """The splits by name: leave_one_out, ratio or global_time. The first ignores the shares."""
    check_split(how, validation, test)
    if how == "leave_one_out":
        return leave_one_out(interactions)
    if how == "ratio":
        return by_ratio(interactions, validation, test)
    return by_global_time(interactions, *cut_times(interactions, validation, test))


def leave_one_out(interactions: Interactions) -> Splits:
    """Last interaction of each user = test, last but one = validation, the rest = train.

    A user with fewer than three interactions is in train only.
    """
    return _by_count(interactions, "leave_one_out", 0, 0)


def by_ratio(interactions: Interactions, validation: float, test: float) -> Splits:
    """The last share of each user's interactions = test, the share before it = validation, the rest = train.

    Shares are rounded down, but a user with three interactions or more has at least one in train, in test and, unless
    its share is 0, in validation. A user with fewer interactions is in train only.
    """
    return _by_count(interactions, "ratio", validation, test)


def sizes_by_count(counts: np.ndarray, how: str, validation: float, test: float) -> tuple[np.ndarray, np.ndarray]:
    """Interactions of each user in train and in validation, of `leave_one_out` and `ratio`; the rest is test.

    Args:
      counts: int [users], each user's interactions.
    """
    enough = counts >= 3
    if how == "leave_one_out":
        return counts - 2 * enough, enough.astype(int)
    least = int(validation > 0)
    tests = np.where(enough, np.clip(_share(counts, test), 1, np.maximum(counts - 1 - least, 1)), 0)
    validations = np.where(enough, np.clip(_share(counts, validation), least, np.maximum(counts - 1 - tests, least)), 0)
    return counts - validations - tests, validations


def _by_count(interactions: Interactions, how: str, validation: float, test: float) -> Splits:
    ordered = interactions.by_user()
    counts = np.bincount(ordered.user, minlength=len(ordered.user_ids))
    return _cut(ordered, *sizes_by_count(counts, how, validation, test))


def cut_times(interactions: Interactions, validation: float, test: float) -> tuple[float, float]:
    """The start times of validation and test that give them these shares of all interactions.

    Interactions at the time of a cut are all on its later side.
    """
    if interactions.timestamp is None:
        raise ValueError("split global_time needs timestamps, but this source has none: use leave_one_out or ratio.")
    times = np.sort(interactions.timestamp)
    tests, validations = (int(_share(np.array(len(times)), share)) for share in (test, validation))
    tests = max(1, tests)
    first, second = float(times[-tests - validations]), float(times[-tests])
    if first == times[0]:
        raise ValueError(
            f"split global_time leaves train empty: too many interactions have the time {first:.0f}. "
            "Use smaller shares, or leave_one_out or ratio."
        )
    return first, second


def by_global_time(interactions: Interactions, validation_from: float, test_from: float) -> Splits:
    """Before `validation_from` = train, from `test_from` on = test, between = validation.

    So all of train is earlier than all held-out interactions, across users. Users and items that first occur after a
    cut stay in the held-out parts; `unseen` counts them.
    """
    ordered = interactions.by_user()
    assert ordered.timestamp is not None
    users = len(ordered.user_ids)
    early = ordered.timestamp < validation_from
    between = ~early & (ordered.timestamp < test_from)
    return _cut(
        ordered, np.bincount(ordered.user[early], minlength=users), np.bincount(ordered.user[between], minlength=users)
    )


def unseen(splits: Splits) -> dict[str, int]:
    """The numbers of users and items that occur in validation or test but not in train."""
    held = np.concatenate([*splits.validation, *splits.test])
    return {
        "new_users": sum(
            not len(train) and len(validation) + len(test) > 0
            for train, validation, test in zip(splits.train, splits.validation, splits.test, strict=True)
        ),
        "new_items": len(np.setdiff1d(held, np.concatenate(splits.train))),
    }


def _share(counts: np.ndarray, share: float) -> np.ndarray:
    """floor(counts · share), robust to rounding: 0.29 · 100 is 29."""
    return np.floor(np.round(counts * share, 9)).astype(int)


def _cut(ordered: Interactions, train: np.ndarray, validation: np.ndarray) -> Splits:
    """Cuts sequences sorted by user and time: of each user the first `train`, the next `validation`, then test."""
    counts = np.bincount(ordered.user, minlength=len(ordered.user_ids))
    sequences = np.split(ordered.item, np.cumsum(counts)[:-1])
    ends = list(zip(train.tolist(), (train + validation).tolist(), strict=True))
    return Splits(
        ordered.user_ids,
        train=[items[:a] for items, (a, _) in zip(sequences, ends, strict=True)],
        validation=[items[a:b] for items, (a, b) in zip(sequences, ends, strict=True)],
        test=[items[b:] for items, (_, b) in zip(sequences, ends, strict=True)],
    )
