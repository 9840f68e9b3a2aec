"""How titles are found that people type: with typing errors, by nicknames, and titles that are not in the catalog.

    python scripts/typed_titles.py data/films [--others FILE.csv] [--seed 0]

Every title is typed with one and with two random errors (a letter left out, doubled, replaced, or swapped with the next
one), and by the nicknames that its form allows. A title counts as found where the lookup of `recommend` returns this
item alone; "asked back" where it is one of several; "another" where the lookup takes another item. --others: a table
with a column `title`, of which titles that are not in the catalog should find nothing.
"""

import argparse
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from instructrec_jax.answering.titles import Titles, bare, letters
from instructrec_jax.preparation.readers.items import split_title
from instructrec_jax.ranking.catalogue import Catalogue

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
ROMAN = re.compile(r"\b[IVX]{2,}\b")  # one letter more is another number
NUMERALS = [("II", "2"), ("III", "3"), ("IV", "4"), ("2", "II"), ("3", "III"), ("Twelve", "12"), ("12", "Twelve")]


def misspelled(title: str, errors: int, rng: np.random.Generator) -> str:
    """A title with typing errors in its letters; numbers stay as they are."""
    for _ in range(errors):
        numbers = [n for found in ROMAN.finditer(title) for n in range(*found.span())]
        places = [n for n, c in enumerate(title) if c.isalpha() and n not in numbers]
        if len(places) < 2:
            return title
        place, kind = int(rng.choice(places)), rng.choice(["leave out", "double", "replace", "swap"])
        before, letter, after = title[:place], title[place], title[place + 1 :]
        if kind == "swap" and after[:1].isalpha() and after[0] != letter:
            title = before + after[0] + letter + after[1:]
        elif kind == "leave out":
            title = before + after
        elif kind == "replace":
            title = before + str(rng.choice([c for c in ALPHABET if c != letter.lower()])) + after
        else:
            title = before + letter + letter + after
    return title


def nicknames(title: str) -> dict[str, str]:
    """Kind of a nickname -> the nickname, of those that the form of a title allows."""
    found = {}
    parts = re.split(r":\s", title)
    if len(parts) > 1:
        found["title without subtitle"] = parts[0]
    if bare(title) != letters(title):
        found["without article"] = bare(title)
    words = letters(parts[0]).split()
    if len(words) >= 3:
        found["initials"] = "".join(word if word.isdigit() else word[0] for word in words).upper()
    if len(bare(title).split()) >= 4:
        found["first three words"] = " ".join(letters(title).split()[:3])
    for old, new in NUMERALS:
        if re.search(rf"\b{old}\b", title):
            found["number in another form"] = re.sub(rf"\b{old}\b", new, title)
            break
    return found


def typed(catalogue: Catalogue, seed: int) -> dict[str, list[tuple[str, int]]]:
    """Kind -> what is typed, and the item that is meant."""
    found: dict[str, list[tuple[str, int]]] = {"as it is": [], "one error": [], "two errors": []}
    for item, title in enumerate(catalogue.titles):
        rng = np.random.default_rng([seed, item])
        found["as it is"].append((title, item))
        for kind, errors in (("one error", 1), ("two errors", 2)):
            found[kind].append((misspelled(title, errors, rng), item))
        for kind, name in nicknames(title).items():
            found.setdefault(kind, []).append((name, item))
    return found


def outcomes(titles: Titles, cases: Iterable[tuple[str, int]]) -> Counter[str]:
    """How many are "found", "asked back", "another" (told in a note), "another, silently" and "not found"."""
    counts: Counter[str] = Counter()
    for words, item in cases:
        match = titles.find(words)
        same = [i for i in match.items if titles.catalogue.titles[i] == titles.catalogue.titles[item]]
        if match.items == [item] or (item in match.items and len(same) == len(match.items)):  # remakes have one title
            counts["found"] += 1
        elif len(match.items) > 1:
            counts["asked back"] += 1
        elif match.items:
            counts["another" if match.close else "another, silently"] += 1
        else:
            counts["not found"] += 1
    return counts


def others(titles: Titles, names: Iterable[str]) -> Counter[str]:
    """What titles that no item has find: "nothing", "asked back", "taken, told" or "taken, silently"."""
    counts: Counter[str] = Counter()
    known = {letters(title) for title in titles.catalogue.titles} | {bare(title) for title in titles.catalogue.titles}
    for name in names:
        title = split_title(name)[0]
        if {letters(title), bare(title)} & known:
            continue
        match = titles.find(title)
        told = "taken, told" if match.close else "taken, silently"
        counts["nothing" if not match.items else "asked back" if len(match.items) > 1 else told] += 1
    return counts


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a prepared folder, or any folder with items.parquet")
    parser.add_argument("--others", type=Path, help="a CSV file with the column title")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    titles = Titles(Catalogue.load(options.folder))
    kinds = ("found", "asked back", "another", "another, silently", "not found")
    say(f"{'':24}{'typed':>7}" + "".join(f"{kind:>19}" for kind in kinds))
    for kind, cases in typed(titles.catalogue, options.seed).items():
        counts = outcomes(titles, cases)
        say(f"{kind:24}{len(cases):7,}" + "".join(f"{counts[each] / len(cases):19.3f}" for each in kinds))
    if options.others is not None:
        with open(options.others, encoding="utf-8", newline="") as rows:
            counts = others(titles, [row["title"] for row in csv.DictReader(rows)])
        say(f"{sum(counts.values()):,} titles of other items: " + ", ".join(f"{k} {n:,}" for k, n in counts.items()))


if __name__ == "__main__":
    main()
