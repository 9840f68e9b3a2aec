"""Synonyms from WordNet and MyThes files, read where a word is asked for.

WordNet: `index.POS` and `data.POS` of the database (wndb(5WN)); Debian's package `wordnet-base`. MyThes: the `.dat`
file of a thesaurus of LibreOffice, such as `th_en_US_v2.dat` of Debian's `mythes-en-us`.

A word has the synonyms of one meaning: the most frequent one in WordNet, the first one in MyThes. They are single
words, and none is listed for an inflected form ("films"), which neither file has.
"""

import mmap
import re
from functools import cache
from pathlib import Path
from typing import Protocol

WORDNET = Path("/usr/share/wordnet")  # where Debian's package lies
_PARTS = ("noun", "verb", "adj", "adv")
_KINDS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}  # of sense keys (senseidx(5WN))
_WORD = re.compile(r"[^\W\d_]+")


class Thesaurus(Protocol):
    """Attributes: files: those that the synonyms depend on."""

    files: tuple[Path, ...]

    def synonyms(self, word: str) -> tuple[str, ...]:
        """Other words of one meaning, () for one that is not listed. word: in lower case."""


@cache
def open_thesaurus(path: str) -> Thesaurus:
    """A WordNet folder, a MyThes file, or a folder with one MyThes file; "": WordNet where Debian installs it.

    Raises ValueError for something else, naming the file and what is missing.
    """
    place = Path(path).expanduser() if path else WORDNET
    place = place.with_suffix(".dat") if place.suffix == ".idx" else place  # the words lie beside their index
    if not place.exists():
        hint = "install Debian's wordnet-base, or name a folder" if not path else "name a folder"
        raise ValueError(
            f"augment.thesaurus: {place} does not exist: {hint} of WordNet (index.noun ...) or a MyThes .dat file."
        )
    if place.is_file():
        return MyThes(place)
    if (place / "index.noun").is_file():
        return WordNet(place)
    found = sorted(place.glob("th_*.dat"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        detail = f"has several thesauri ({names}): name one of these files" if found else "is no thesaurus"
        raise ValueError(f"augment.thesaurus: {place} {detail}. WordNet has index.noun, MyThes th_LANGUAGE.dat.")
    return MyThes(found[0])


class WordNet:
    """A WordNet database. Raises ValueError for a file that is missing or is not as wndb(5WN) describes it."""

    def __init__(self, folder: Path) -> None:
        indices = [folder / f"index.{part}" for part in _PARTS]
        data = [folder / f"data.{part}" for part in _PARTS]
        if missing := [file.name for file in (*indices, *data) if not file.is_file()]:
            raise ValueError(f"augment.thesaurus: the WordNet folder {folder} lacks {', '.join(missing)}.")
        counts = folder / "cntlist.rev"
        self.files = (*indices, *data, *([counts] if counts.is_file() else []))
        self._data = dict(zip(_PARTS, map(_mapped, data), strict=True))
        self._data_files = dict(zip(_PARTS, data, strict=True))
        self._first: dict[str, tuple[str, int]] = {}  # word -> its part of speech, and the byte of its first meaning
        frequent = _first_counts(counts) if counts.is_file() else {}
        most: dict[str, int] = {}
        for part, file in zip(_PARTS, indices, strict=True):
            for word, offset in _first_meanings(file):
                often = frequent.get((word, part), 0)
                if often > most.get(word, -1):
                    most[word], self._first[word] = often, (part, offset)

    def synonyms(self, word: str) -> tuple[str, ...]:
        if word not in self._first:
            return ()
        part, offset = self._first[word]
        data = self._data[part]
        line = data[offset : data.find(b"\n", offset)].decode("utf-8", "replace").split(" ")
        if line[0] != f"{offset:08d}":
            file = self._data_files[part]
            raise ValueError(f"augment.thesaurus: {file} has no meaning at byte {offset}: its index is of another one.")
        words = [line[4 + 2 * number].partition("(")[0] for number in range(int(line[3], 16))]
        return tuple(each for each in words if each.lower() != word and _WORD.fullmatch(each))


def _mapped(file: Path) -> mmap.mmap:
    with open(file, "rb") as stream:
        try:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError(f"augment.thesaurus: {file} is empty.") from None


def _first_meanings(file: Path) -> list[tuple[str, int]]:
    """(word, byte of its most frequent meaning in the data file) of an index file; single words only."""
    found = []
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith("  "):  # the license
                continue
            # lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt synset_offset [synset_offset...]
            entry = line.split()
            try:
                offset = int(entry[-int(entry[2])])
                int(entry[3])
            except (IndexError, ValueError):
                detail = f"line {number} is no entry of a WordNet index: {line[:60].strip()!r}"
                raise ValueError(f"augment.thesaurus: {file}: {detail}.") from None
            if _WORD.fullmatch(entry[0]):
                found.append((entry[0], offset))
    return found


def _first_counts(file: Path) -> dict[tuple[str, str], int]:
    """(word, part of speech) -> how often its first meaning was met, from lines `good%3:00:01:: 1 190`."""
    found: dict[tuple[str, str], int] = {}
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, rest = line.partition(" ")
            word, _, sense = key.partition("%")
            number, _, count = rest.strip().partition(" ")
            if number == "1" and sense[:1] in _KINDS and count.isdecimal():
                place = word, _KINDS[sense[0]]
                found[place] = max(found.get(place, 0), int(count))
    return found


class MyThes:
    """A MyThes thesaurus: an encoding, then `word|2` and as many lines `(noun)|synonym|synonym (generic term)`.

    Words with a note in brackets are not synonyms (generic, similar, related terms, antonyms), so they are left out.

    Raises ValueError for a file of another form.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise ValueError(f"augment.thesaurus: {file} does not exist: MyThes has its words in this .dat file.")
        self.files: tuple[Path, ...] = (file,)
        data = _mapped(file)
        self._data, self._places = data, dict[str, int]()
        self._encoding = data.readline().decode("ascii", "replace").strip()
        try:
            "".encode(self._encoding)
        except (LookupError, ValueError):  # ValueError: a null character
            detail = f"its first line {self._encoding[:40]!r} names no encoding"
            raise ValueError(f"augment.thesaurus: {file} is no MyThes file: {detail}.") from None
        number = 1
        while line := data.readline():
            number += 1
            entry = line.decode(self._encoding, "replace").strip()
            word, _, meanings = entry.rpartition("|")
            if not word or not meanings.isdecimal():
                detail = f"line {number} should be word|meanings, but is {entry[:60]!r}"
                raise ValueError(f"augment.thesaurus: {file} is no MyThes file: {detail}.")
            if meanings != "0" and _WORD.fullmatch(word):
                self._places[word] = data.tell()
            for _ in range(int(meanings)):
                data.readline()
            number += int(meanings)
        if not self._places:
            raise ValueError(f"augment.thesaurus: {file} lists no words.")

    def synonyms(self, word: str) -> tuple[str, ...]:
        place = self._places.get(word)
        if place is None:
            return ()
        line = self._data[place : self._data.find(b"\n", place)].decode(self._encoding, "replace")
        words = line.strip().split("|")[1:]
        return tuple(dict.fromkeys(each for each in words if each.lower() != word and _WORD.fullmatch(each)))
