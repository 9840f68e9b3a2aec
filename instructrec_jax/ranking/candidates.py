"""Candidate sets for sampled evaluation: drawn by seed, or read from a file.

    uni9, uni99    9 or 99 items, drawn uniformly
    pop99          99 items, drawn in proportion to their training interactions, without replacement
    hard9          the 9 nearest items by text: cosine of TF-IDF, ties at random
    listed         the candidates listed in the examples
    FILE, FILE:19  a candidate file: lines `user<TAB>ids` or JSON lines {"user", "candidates"}, .gz or not; the first 19

All numbers work (uni49). Drawn candidates exclude the user's items of all splits. A draw depends only on the seed, the
protocol, the user and the positive items, not on the other cases. `prepare` saves the draws, one line per held-out
interaction: FOLDER/candidates/{protocol}.{split}.jsonl {"user", "item", "candidates"}.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from instructrec_jax.data.example import show
from instructrec_jax.files import write_jsonl
from instructrec_jax.parsing import read_json_lines, text_lines
from instructrec_jax.ranking.baselines import contains, words
from instructrec_jax.ranking.catalogue import Catalogue, Splits

ROUNDS = 8  # of rejection sampling, before the remaining draws are made from lists
MANY = 4096  # cases that candidates are drawn for at once
BLOCK = 256  # cases whose similarities to all items are in memory at once


@dataclass(frozen=True)
class Candidates:
    """The candidates of each case, without its positive items."""

    name: str
    """name of the protocol, the prefix of its metrics: "uni9 NDCG@3" """
    items: np.ndarray
    """int32 [cases, k]; −1: no item"""
    description: str
    """origin of the candidates, for reports"""


@dataclass(frozen=True)
class Asked:
    """The cases that need candidates. One entry per case."""

    users: Sequence[str]
    """user ids; "": none"""
    positives: Sequence[np.ndarray]
    """numbers of the positive items"""
    own: Sequence[np.ndarray]
    """item numbers of all the user's interactions, which are never candidates; with or without the positives"""
    splits: Sequence[str]
    """split of each case; "": unknown"""

    def __len__(self) -> int:
        return len(self.users)

    def take(self, numbers: np.ndarray) -> "Asked":
        """The cases with these numbers."""
        return Asked(
            [self.users[i] for i in numbers],
            [self.positives[i] for i in numbers],
            [self.own[i] for i in numbers],
            [self.splits[i] for i in numbers],
        )


def check_protocol(protocol: str) -> None:
    """Raises ValueError for an unknown protocol."""
    if protocol in ("full", "listed") or _drawn(protocol) or _own_file(protocol)[0].is_file():
        return
    raise ValueError(
        f"unknown protocol {protocol!r}; choose full, listed, uni9, uni99, pop99, hard9 (or another number), or the "
        "path of a candidate file."
    )


def check_drawn(protocols: Sequence[str]) -> None:
    """Raises ValueError unless candidates can be drawn for all protocols."""
    for protocol in protocols:
        if not _drawn(protocol):
            raise ValueError(f"protocol {protocol!r} draws no candidates; choose uni9, uni99, pop99 or hard9.")


def candidates_for(
    protocol: str,
    asked: Asked,
    catalogue: Catalogue,
    *,
    folder: str | Path,
    popularity: ArrayLike,
    listed: Sequence[Sequence[str]] = (),
    seed: int = 0,
) -> Candidates:
    """The candidates of each case: from a file if there is one, otherwise drawn.

    Args:
      folder: the prepared folder, which may have candidates/.
      popularity: training interactions of each item [items].
      listed: item ids listed in each example, for `listed`.

    Raises ValueError for an unknown protocol, and for a case with fewer possible candidates than the protocol needs.
    """
    check_protocol(protocol)
    if protocol == "listed":
        lists: list[np.ndarray | None] = [catalogue.numbers(ids) if len(ids) else None for ids in listed]
        return Candidates(protocol, *_from_lists(protocol, lists, asked, None))
    if not _drawn(protocol):
        path, first = _own_file(protocol)
        by_user = _read_own(path, catalogue)
        name = name_and_size(protocol)[0]
        items, description = _from_lists(name, [by_user.get(user) for user in asked.users], asked, first)
        return Candidates(name, items, description)
    items, missing = _frozen(Path(folder), protocol, asked, catalogue)
    description = _described(protocol)
    if frozen := len(asked) - len(missing):
        description += f", read from candidates/{protocol}.*.jsonl" + (f" for {frozen:,} cases" if len(missing) else "")
    if len(missing):
        items[missing] = draw(protocol, asked.take(missing), catalogue, popularity, seed)
        description += ("; the others" if frozen else ",") + f" drawn with seed {seed}"
    return Candidates(protocol, items, description)


def write_candidates(
    folder: str | Path, catalogue: Catalogue, splits: Splits, protocols: Sequence[str], seed: int = 0
) -> dict[str, int]:
    """Draws and saves candidates for every validation and test interaction; returns file name -> number of lines."""
    check_drawn(protocols)
    popularity = np.zeros(len(catalogue))
    for items in splits.train:
        np.add.at(popularity, items, 1)
    own = [np.concatenate(parts) for parts in zip(splits.train, splits.validation, splits.test, strict=True)]
    written = {}
    for split in ("validation", "test"):
        held_out = getattr(splits, split)
        cases = [(user, item) for user, items in enumerate(held_out) for item in items]
        asked = Asked(
            [splits.user_ids[user] for user, _ in cases],
            [np.array([item]) for _, item in cases],
            [own[user] for user, _ in cases],
            [split] * len(cases),
        )
        for protocol in protocols:
            drawn = draw(protocol, asked, catalogue, popularity, seed) if cases else np.empty((0, 0), np.int32)
            name = f"{protocol}.{split}.jsonl"
            rows = (
                {"user": user, "item": catalogue.ids[item], "candidates": [catalogue.ids[i] for i in numbers.tolist()]}
                for user, (_, item), numbers in zip(asked.users, cases, drawn, strict=True)
            )
            written[name] = write_jsonl(Path(folder) / "candidates" / name, rows)
    return written


# ---------------------------------------------------------------- drawing


def draw(protocol: str, asked: Asked, catalogue: Catalogue, popularity: ArrayLike, seed: int = 0) -> np.ndarray:
    """Candidates, int32 [cases, k]: distinct items, without the positive items and the user's own."""
    kind, size = _drawn(protocol) or ("", 0)
    if kind != "hard" and len(asked) > MANY:  # a draw depends on its case alone, and needs several times its size
        starts = range(0, len(asked), MANY)
        parts = [asked.take(np.arange(start, min(start + MANY, len(asked)))) for start in starts]
        return np.concatenate([draw(protocol, part, catalogue, popularity, seed) for part in parts])
    num_items, keys = len(catalogue), _keys(protocol, asked, catalogue, seed)
    forbidden = pairs([np.concatenate(both) for both in zip(asked.own, asked.positives, strict=True)], num_items)
    left = num_items - np.bincount(forbidden // num_items, minlength=len(asked))
    if (left < size).any():
        case = int(np.argmin(left))
        raise ValueError(
            f"protocol {protocol}: only {left[case]} of {num_items} items have no interaction by user "
            f"{asked.users[case]!r}. Choose a smaller number."
        )
    if kind == "hard":
        return _nearest(asked, catalogue, forbidden, keys, size)
    weights = np.ones(num_items) if kind == "uni" else np.asarray(popularity, np.float64)
    if (possible := np.count_nonzero(weights)) < size:
        message = f"only {possible} items have training interactions"
        raise ValueError(f"protocol {protocol}: {message}. Choose a smaller number.")
    return _by_weight(protocol, asked, weights, forbidden, keys, size)


def _by_weight(
    protocol: str, asked: Asked, weights: np.ndarray, forbidden: np.ndarray, keys: np.ndarray, size: int
) -> np.ndarray:
    """Draws by weight without replacement: repeated and forbidden items are drawn again."""
    num_items, width = len(weights), size + size // 4 + 4
    edges = np.cumsum(weights) / weights.sum()
    chosen = np.full((len(asked), size), -1, np.int64)
    open_rows = np.arange(len(asked))
    for number in range(ROUNDS):
        drawn = np.searchsorted(edges, _uniform(keys[open_rows], number * width, width), side="right")
        both = np.concatenate([chosen[open_rows], np.minimum(drawn, num_items - 1)], axis=1)
        good = (both >= 0) & ~contains(forbidden, open_rows[:, None] * num_items + both) & ~_repeated(both)
        order = np.argsort(~good, axis=1, kind="stable")[:, :size]
        chosen[open_rows] = np.where(np.take_along_axis(good, order, 1), np.take_along_axis(both, order, 1), -1)
        open_rows = open_rows[chosen[open_rows, -1] < 0]
        if not len(open_rows):
            return chosen.astype(np.int32)
    # Users with nearly all weighted items: draw the rest from a list by the Gumbel trick (the same distribution).
    for row in open_rows.tolist():
        start, end = np.searchsorted(forbidden, [row * num_items, (row + 1) * num_items])
        possible = weights > 0
        possible[forbidden[start:end] - row * num_items] = False
        kept = chosen[row][chosen[row] >= 0]
        possible[kept] = False
        rest, need = np.flatnonzero(possible), size - len(kept)
        if len(rest) < need:
            raise ValueError(
                f"protocol {protocol}: only {len(rest) + len(kept)} items with training interactions have none by user "
                f"{asked.users[row]!r}. Choose a smaller number."
            )
        order = np.log(weights[rest]) + np.random.default_rng(int(keys[row])).gumbel(size=len(rest))
        chosen[row, len(kept) :] = rest[np.argsort(-order)[:need]]
    return chosen.astype(np.int32)


def _nearest(asked: Asked, catalogue: Catalogue, forbidden: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """The items whose texts are most similar to the positive item's (to the sum of vectors of several)."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    num_items = len(catalogue)
    vectors = TfidfVectorizer(analyzer=words, dtype=np.float32).fit_transform(catalogue.texts).tocsr()
    counts = [len(items) for items in asked.positives]
    rows_columns = np.repeat(np.arange(len(asked)), counts), np.concatenate(asked.positives)
    picks = np.ones(sum(counts), np.float32), rows_columns
    queries = sparse.csr_array(picks, shape=(len(asked), num_items)) @ vectors
    # Far smaller than any similarity, and different for each case: texts without a common word are in random order.
    jitter = np.random.default_rng(0).permutation(num_items).astype(np.float32) * np.float32(1e-6 / num_items)
    shifted = np.lib.stride_tricks.sliding_window_view(np.concatenate([jitter, jitter]), num_items)
    found = np.empty((len(asked), size), np.int32)
    for start in range(0, len(asked), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(asked)))
        alike = (queries[rows] @ vectors.T).toarray() + shifted[(keys[rows] % np.uint64(num_items)).astype(np.int64)]
        first, last = np.searchsorted(forbidden, [start * num_items, (rows[-1] + 1) * num_items])
        inside = forbidden[first:last]
        alike[inside // num_items - start, inside % num_items] = -1
        top = np.argpartition(-alike, size - 1, axis=1)[:, :size]
        order = np.argsort(-np.take_along_axis(alike, top, axis=1), axis=1)
        found[rows] = np.take_along_axis(top, order, axis=1)
    return found


def pairs(items: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """The set of (case, item) pairs as sorted distinct case · num_items + item, int64."""
    flat = np.concatenate([np.empty(0, np.int64), *items]).astype(np.int64)
    return np.unique(np.repeat(np.arange(len(items)), [len(each) for each in items]) * num_items + flat)


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Mask of the entries that occur earlier in their row, bool like `rows`."""
    order = np.argsort(rows, axis=1, kind="stable")
    in_order = np.take_along_axis(rows, order, axis=1)
    again = np.zeros(rows.shape, bool)
    again[:, 1:] = in_order[:, 1:] == in_order[:, :-1]
    result = np.empty_like(again)
    np.put_along_axis(result, order, again, axis=1)
    return result


def _keys(protocol: str, asked: Asked, catalogue: Catalogue, seed: int) -> np.ndarray:
    """uint64 [cases]: a hash of seed, protocol, user and positive items."""

    def key(user: str, positives: np.ndarray) -> bytes:
        content = json.dumps([seed, protocol, user, [catalogue.ids[i] for i in positives]])
        return hashlib.blake2b(content.encode(), digest_size=8).digest()

    return np.frombuffer(b"".join(map(key, asked.users, asked.positives)), np.uint64)


def _uniform(keys: np.ndarray, first: int, count: int) -> np.ndarray:
    """float64 [keys, count] in [0, 1): entries first .. of each key's stream of SplitMix64 (Steele et al., 2014)."""
    x = keys[:, None] + np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


# ---------------------------------------------------------------- files


def _frozen(folder: Path, protocol: str, asked: Asked, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """int32 [cases, k] from the candidate files of the cases' splits, and the numbers of the cases without an entry."""
    size = (_drawn(protocol) or ("", 0))[1]
    items, found = np.full((len(asked), size), -1, np.int32), np.zeros(len(asked), bool)
    for split in sorted(set(asked.splits) - {""}):
        path = folder / "candidates" / f"{protocol}.{split}.jsonl"
        if not path.is_file():
            continue
        place = {
            (user, catalogue.ids[positives[0]]): case
            for case, (user, positives, its) in enumerate(zip(asked.users, asked.positives, asked.splits, strict=True))
            if its == split and len(positives) == 1
        }
        for where, user, item, ids in _rows(path):
            case = place.get((user, item))
            if case is None:
                continue
            items[case] = _numbers(catalogue, ids, where, size)
            found[case] = True
            if asked.positives[case][0] in items[case]:
                raise ValueError(f"{where}: the candidates include the positive item.")
    return items, np.flatnonzero(~found)


def _read_own(path: Path, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """User id -> item numbers."""
    found: dict[str, np.ndarray] = {}
    for where, user, ids in _own_lines(path):
        if user in found:
            raise ValueError(f"{where}: the user {user!r} occurs twice.")
        found[user] = _numbers(catalogue, ids, where)
    return found


def _own_lines(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(file and line, user, ids of candidates) of JSON lines, or of `user<TAB>ids` lines."""
    if ".jsonl" in path.suffixes or ".json" in path.suffixes:
        yield from ((where, user, ids) for where, user, _, ids in _rows(path))
        return
    for number, line in enumerate(text_lines(path), 1):
        user, tab, ids = line.rstrip("\r\n").partition("\t")
        if not tab or not user.strip():
            raise ValueError(f"{path}:{number}: expected a user, a tab, and item ids separated by spaces.")
        yield f"{path}:{number}", user, ids.split()


def _rows(path: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(file and line, user, item or "", ids of candidates) of JSON lines."""
    for where, row in read_json_lines(path):
        user, item, ids = row.get("user"), row.get("item", ""), row.get("candidates")
        if not isinstance(ids, list) or not all(_is_id(value) for value in (user, item, *ids)):
            raise ValueError(
                f'{where}: expected {{"user": id, "candidates": [ids]}}, found user {show(user)}, '
                f"candidates {show(ids)}."
            )
        yield where, str(user), str(item), [str(i) for i in ids]


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _numbers(catalogue: Catalogue, ids: Sequence[str], where: str, size: int | None = None) -> np.ndarray:
    try:
        numbers = catalogue.numbers(ids)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(np.unique(numbers)) < len(numbers) or size not in (None, len(numbers)):
        expected = "distinct candidates" if size is None else f"{size} distinct candidates"
        raise ValueError(f"{where}: expected {expected}, got {len(numbers)} ({len(np.unique(numbers))} distinct).")
    return numbers


def _from_lists(
    name: str, lists: Sequence[np.ndarray | None], asked: Asked, first: int | None
) -> tuple[np.ndarray, str]:
    """(candidates [cases, k], description): the lists without positive items, cut to the `first` entries if given."""
    kept = [
        None if items is None else items[~np.isin(items, positives)][:first]
        for items, positives in zip(lists, asked.positives, strict=True)
    ]
    lengths = [len(items) for items in kept if items is not None]
    if not lengths:
        raise ValueError(f"protocol {name}: none of the {len(asked)} cases has candidates. Check the ids.")
    found = np.full((len(asked), max(lengths)), -1, np.int32)
    for row, items in zip(found, kept, strict=True):
        if items is not None:
            row[: len(items)] = items
    few = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{max(lengths)}"
    source = "listed in the examples" if name == "listed" else "from the file"
    only = "" if len(lengths) == len(asked) else f", for {len(lengths):,} of {len(asked):,} cases"
    return found, f"{few} candidates {source} beside the positive items{only}"


# ---------------------------------------------------------------- names


def _drawn(protocol: str) -> tuple[str, int] | None:
    """uni9 -> (uni, 9)."""
    match = re.fullmatch(r"(uni|pop|hard)([1-9]\d*)", protocol)
    return (match[1], int(match[2])) if match else None


def name_and_size(protocol: str) -> tuple[str, int | None]:
    """The prefix of a protocol's metrics, and the number of candidates per case, if known."""
    if drawn := _drawn(protocol):
        return protocol, drawn[1]
    if protocol == "listed":
        return protocol, None
    path, first = _own_file(protocol)
    name = path.name.removesuffix(".gz")
    return f"{name}:{first}" if first else name, first


def _own_file(protocol: str) -> tuple[Path, int | None]:
    """(path, candidates used of each list or None): FILE or FILE:19."""
    match = re.fullmatch(r"(.+):([1-9]\d*)", protocol)
    return (Path(match[1]), int(match[2])) if match and not Path(protocol).is_file() else (Path(protocol), None)


def _described(protocol: str) -> str:
    kind, size = _drawn(protocol) or ("", 0)
    how = {"uni": "drawn uniformly", "pop": "drawn by popularity", "hard": "nearest by text (TF-IDF)"}[kind]
    return f"{size} items {how}, without the user's interactions"
