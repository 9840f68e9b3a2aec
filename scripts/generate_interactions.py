"""Writes SYNTHETIC ratings with long tails, in the layout of MovieLens: ratings.csv and movies.csv.

    python scripts/generate_interactions.py --out data/synthetic                                  25 million ratings
    python scripts/generate_interactions.py --out data/small --interactions 100000 --users 650 --items 3000

How often users rate is log-normal, with a minimum (as in MovieLens 25M: at least 20, a mean of 154, a long tail). How
often items are rated follows Zipf's law with a shift: a tenth of the items has most of the ratings. Items belong to
clusters and users prefer a few of them, so that methods that use histories beat popularity. No user rates an item
twice, but for a few who rate very many. Lines are in order of users, and times rise within a user.

Users are drawn in blocks, each from its own seed, and written as they are drawn: the memory does not depend on the
number of ratings, and the bytes depend on the settings alone.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from instructrec_jax.files import replacing, write_text

BLOCK = 1_000  # users drawn at a time
CLUSTERS = 50
LIKED = 3  # clusters that a user prefers
OWN = 0.5  # share of a user's ratings inside the preferred clusters
ZIPF, SHIFT = 1.8, 0.01  # an item's weight: (rank + SHIFT · items)^-ZIPF
ROUNDS = 30  # of drawing repeated items again
LEAST = 20  # ratings of a user at least, where the mean allows it
SPREAD = 1.1  # standard deviation of the log of a user's ratings
FIRST, LAST = 800_000_000, 1_600_000_000  # seconds since 1970
GENRES = ("Action", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Horror", "Mystery", "Romance", "Western")


def sizes(interactions: int, users: int, items: int, seed: int) -> np.ndarray:
    """Ratings of each user, int64 [users]: log-normal above a minimum, with the sum `interactions`."""
    least = min(LEAST, interactions // users)
    rng = np.random.default_rng([seed, 0])
    weights = np.minimum(rng.lognormal(0, SPREAD, users), np.exp(3.5 * SPREAD))
    exact = weights / weights.sum() * (interactions - least * users)
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact)[: interactions - least * users - counts.sum()]] += 1
    counts += least
    most = items // 3  # of one user; others rate what is beyond
    if interactions > users * most:
        raise ValueError(
            f"--items {items} are too few for {interactions // users} ratings of each user: raise --items."
        )
    while beyond := int(np.maximum(counts - most, 0).sum()):
        counts = np.minimum(counts, most)
        free = np.flatnonzero(counts < most)
        counts[free] += beyond // len(free)
        counts[free[: beyond % len(free)]] += 1
    return counts


class Shop:
    """The items: how often each is rated, and its cluster."""

    def __init__(self, items: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        weights = (np.arange(items) + 1 + SHIFT * items) ** -ZIPF
        self.numbers = rng.permutation(items)  # the item at each rank, so that ids tell nothing about popularity
        self.cluster = rng.integers(0, CLUSTERS, items)
        self.cluster[:CLUSTERS] = np.arange(CLUSTERS)[: len(self.cluster)]
        self.edges = np.cumsum(weights) / weights.sum()
        self.members = [np.flatnonzero(self.cluster == number) for number in range(CLUSTERS)]
        self.inside = [np.cumsum(weights[ranks]) / max(weights[ranks].sum(), 1e-300) for ranks in self.members]

    def draw(self, counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(place of the user in `counts`, item number) of each rating, int64 [sum of counts]."""
        place = np.repeat(np.arange(len(counts)), counts)
        liked = rng.integers(0, CLUSTERS, (len(counts), LIKED))
        ranks, again = np.full(len(place), -1), np.arange(len(place))
        for _ in range(ROUNDS):
            ranks[again] = self._ranks(liked[place[again]], rng)
            _, first = np.unique(place * len(self.numbers) + ranks, return_index=True)
            again = np.setdiff1d(np.arange(len(place)), first, assume_unique=True)
            if not len(again):
                break
        return place, self.numbers[ranks]

    def _ranks(self, liked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A rank for each row of preferred clusters, int [n, LIKED]."""
        count = len(liked)
        ranks = np.searchsorted(self.edges, rng.random(count), side="right")
        one = liked[np.arange(count), rng.integers(0, LIKED, count)]
        chosen = np.where(rng.random(count) < OWN, one, -1)
        for number, members in enumerate(self.members):
            inside = np.flatnonzero(chosen == number)
            if len(members):
                ranks[inside] = members[np.searchsorted(self.inside[number], rng.random(len(inside)), side="right")]
        return np.minimum(ranks, len(self.numbers) - 1)


def ratings(interactions: int, users: int, items: int, seed: int) -> Iterator[pa.Table]:
    """The ratings of `BLOCK` users at a time: userId, movieId (from 1), rating, timestamp."""
    counts, shop = sizes(interactions, users, items, seed), Shop(items, seed)
    for start in range(0, users, BLOCK):
        rng = np.random.default_rng([seed, 2, start])
        place, item = shop.draw(counts[start : start + BLOCK], rng)
        began = rng.integers(FIRST, LAST, len(counts[start : start + BLOCK]))
        gaps = rng.exponential(3_600, len(place)).astype(np.int64)
        total = np.cumsum(gaps)
        before = np.searchsorted(place, place)  # the first rating of the same user
        stars = np.clip(np.round(rng.normal(3.5, 1.0, len(place)) * 2) / 2, 0.5, 5)
        yield pa.table(
            {
                "userId": start + place + 1,
                "movieId": item + 1,
                "rating": stars,
                "timestamp": began[place] + total - total[before],
            }
        )


def write(out: Path, interactions: int, users: int, items: int, seed: int) -> int:
    """Writes OUT/ratings.csv and OUT/movies.csv; returns the number of ratings."""
    if min(interactions, users, items) < 1 or interactions < users:
        raise ValueError("--interactions must be at least --users, and all of them at least 1.")
    shop, rng = Shop(items, seed), np.random.default_rng([seed, 3])
    cluster = np.empty(items, np.int64)
    cluster[shop.numbers] = shop.cluster
    years = rng.integers(1920, 2020, items)
    lines = [
        f"{number + 1},Item {number + 1} of kind {kind} ({year}),{GENRES[kind % 10]}|{GENRES[(kind // 10 + kind) % 10]}"
        for number, (kind, year) in enumerate(zip(cluster.tolist(), years.tolist(), strict=True))
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "movies.csv", "\n".join(["movieId,title,genres", *lines]) + "\n")
    written = 0
    plain = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
    with replacing(out / "ratings.csv") as file:
        file.write(b"userId,movieId,rating,timestamp\n")
        for block in ratings(interactions, users, items, seed):
            pyarrow.csv.write_csv(block, file, plain)
            written += len(block)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for ratings.csv and movies.csv")
    parser.add_argument("--interactions", type=int, default=25_000_000)
    parser.add_argument("--users", type=int, default=162_000)
    parser.add_argument("--items", type=int, default=59_000)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    try:
        written = write(settings.out, settings.interactions, settings.users, settings.items, settings.seed)
    except (ValueError, OSError) as error:
        raise SystemExit(f"generate_interactions: {error}") from None
    print(f"{settings.out}: {written:,} ratings of {settings.users:,} users and {settings.items:,} items")


if __name__ == "__main__":
    main()
