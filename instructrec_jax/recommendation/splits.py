"""From raw interactions to training sequences: one per user and item, k-core, leave-one-out."""

import numpy as np

from instructrec_jax.recommendation.catalogue import Catalogue, Interactions, Splits


def first_per_item(interactions: Interactions) -> Interactions:
    """Each user's first interaction with each item, sorted by user and time.

    A target that the user already had would be hidden by the seen-items mask, and a test target could sit in
    the user's own training sequence.
    """
    ordered = interactions.by_user()
    key = ordered.user.astype(np.int64) * (int(ordered.item.max(initial=0)) + 1) + ordered.item
    _, first = np.unique(key, return_index=True)
    return ordered.take(np.sort(first))


def at_least(interactions: Interactions, min_rating: float | None) -> Interactions:
    """The interactions rated `min_rating` or better; all of them if it is None."""
    if min_rating is None:
        return interactions
    if interactions.rating is None:
        raise ValueError(f"min_rating is {min_rating}, but this source has no ratings: leave it out.")
    return interactions.take(interactions.rating >= min_rating)


def k_core(catalogue: Catalogue, interactions: Interactions, k: int) -> tuple[Catalogue, Interactions]:
    """The largest part in which every user and every item has at least k interactions.

    Users and items below k are removed in turn until none is left to remove; what stays is renumbered, in the
    old order. k = 0 keeps items that nobody chose. An empty result is an error.
    """
    if k < 0:
        raise ValueError(f"k_core must be 0 or more, got {k}.")
    keep = np.ones(len(interactions), bool)
    while True:
        users = np.bincount(interactions.user[keep], minlength=len(interactions.user_ids))
        items = np.bincount(interactions.item[keep], minlength=len(catalogue))
        still = keep & (users[interactions.user] >= k) & (items[interactions.item] >= k)
        if (still == keep).all():
            break
        keep = still
    if not keep.any():
        raise ValueError(f"no interaction is left of {len(interactions)} after the {k}-core filter: lower k_core.")
    user_numbers, item_numbers = np.flatnonzero(users >= max(k, 1)), np.flatnonzero(items >= k)
    kept = interactions.take(keep)
    renumbered = Interactions(
        [interactions.user_ids[number] for number in user_numbers],
        np.searchsorted(user_numbers, kept.user).astype(np.int32),
        np.searchsorted(item_numbers, kept.item).astype(np.int32),
        kept.timestamp,
        kept.rating,
    )
    return catalogue.take(item_numbers), renumbered


def leave_one_out(interactions: Interactions) -> Splits:
    """Last interaction of each user = test, last but one = validation, the rest = train.

    A user with fewer than three interactions has no history left to predict from and stays whole in train.
    """
    ordered = interactions.by_user()
    counts = np.bincount(ordered.user, minlength=len(ordered.user_ids))
    sequences = np.split(ordered.item, np.cumsum(counts)[:-1])
    held = [2 if len(items) >= 3 else 0 for items in sequences]
    return Splits(
        ordered.user_ids,
        train=[items[: len(items) - h] for items, h in zip(sequences, held, strict=True)],
        validation=[items[-2:-1] if h else items[:0] for items, h in zip(sequences, held, strict=True)],
        test=[items[-1:] if h else items[:0] for items, h in zip(sequences, held, strict=True)],
    )
