"""A tiny WordNet and a tiny MyThes thesaurus."""

from pathlib import Path

LICENSE = "  1 This software and database is being provided to you  \n"
PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
MEANINGS = {
    "noun": [("film", "movie", "moving_picture"), ("good", "goodness"), ("film", "cinema")],
    "verb": [("film", "shoot")],
    "adj": [("good", "fine"), ("dull", "boring(a)"), ("old",)],
    "adv": [("well", "good")],
}
COUNTS = {("film", 1): 5, ("film", 2): 2, ("good", 1): 11, ("good", 3): 190}


def write_wordnet(folder: Path, counts: bool = True) -> Path:
    """ "good" is mostly an adjective, which cntlist.rev alone tells."""
    folder.mkdir(exist_ok=True)
    for part, letter in PARTS.items():
        text, places = LICENSE, dict[str, list[int]]()
        for words in MEANINGS[part]:
            offset = len(text.encode())
            listed = " ".join(f"{word} 0" for word in words)
            text += f"{offset:08d} 03 {letter} {len(words):02x} {listed} 000 | a meaning  \n"
            for word in words:
                places.setdefault(word.partition("(")[0], []).append(offset)
        (folder / f"data.{part}").write_text(text, encoding="utf-8")
        lines = [
            f"{word} {letter} {len(found)} 1 @ {len(found)} 0 {' '.join(f'{each:08d}' for each in found)}  \n"
            for word, found in sorted(places.items())
        ]
        (folder / f"index.{part}").write_text(LICENSE + "".join(lines), encoding="utf-8")
    if counts:
        lines = [f"{word}%{kind}:00:00:: 1 {count}\n" for (word, kind), count in COUNTS.items()]
        (folder / "cntlist.rev").write_text("".join(lines), encoding="utf-8")
    return folder


def write_mythes(file: Path, encoding: str = "UTF-8") -> Path:
    text = (
        f"{encoding}\ngood|2\n(adj)|fine|great (similar term)|very good|bad (antonym)\n(noun)|goodness\n"
        "schön|1\n(adj)|hübsch\nbook|1\n(noun)|publication (generic term)\n"
    )
    file.write_text(text, encoding=encoding)
    return file
