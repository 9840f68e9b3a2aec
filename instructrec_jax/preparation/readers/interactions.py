"""Who chose what: rows of (user, item, rating, time) gathered into `Interactions`."""

import math
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.preparation.readers.items import damage
from instructrec_jax.preparation.readers.lines import BadLines
from instructrec_jax.ranking.catalogue import Catalogue, Interactions


def gather(
    rows: Iterable[tuple[int, Any]],
    path: Path,
    catalogue: Catalogue,
    bad: BadLines,
    *,
    rated: bool = True,
    timed: bool = True,
) -> Interactions:
    """Columns from (line, (user id, item id, rating, time)); rating and time may be text or numbers.

    rated, timed: whether the source has such a column. Where it has one, a line without a number there is bad.
    """
    users: dict[str, int] = {}
    # array.array keeps 25 million rows at a few bytes each, where lists of objects would take gigabytes
    user, item, rating, timestamp = array("i"), array("i"), array("f"), array("d")
    index = catalogue.index
    for line, (user_id, item_id, stars, time) in rows:
        if not user_id or not user_id.strip():
            bad(path, line, "empty user id")
            continue
        if item_id not in index:
            bad(path, line, f"item {item_id!r} is not in the item file")
            continue
        try:
            rate = float(stars) if rated else 0.0
            when = float(time) if timed else 0.0
        except (TypeError, ValueError, OverflowError):
            bad(path, line, f"rating {stars!r} or timestamp {time!r} is not a number")
            continue
        if not (math.isfinite(rate) and math.isfinite(when)):
            bad(path, line, f"rating {stars!r} or timestamp {time!r} is not finite")
            continue
        number = users.get(user_id)
        if number is None:
            if why := damage(user_id):
                bad(path, line, f"user {user_id!r} holds {why}")
                continue
            number = users[user_id] = len(users)
        user.append(number)
        item.append(index[item_id])
        if rated:
            rating.append(rate)
        if timed:
            timestamp.append(when)
    if not user:
        why = f" ({bad.skipped[-1]})" if bad.skipped else ""
        raise ValueError(f"{path} holds no usable interaction{why}.")
    return Interactions(
        list(users),
        np.array(user, np.int32),
        np.array(item, np.int32),
        np.array(timestamp, np.float64) if timed else None,
        np.array(rating, np.float32) if rated else None,
    )
