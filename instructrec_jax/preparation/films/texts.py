"""What the embedded data set is made of: facts of films, wordings of wishes, and a glossary."""

import json
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@cache
def facts() -> list[dict[str, Any]]:
    """The films as written in films.jsonl."""
    return [json.loads(line) for line in (HERE / "films.jsonl").read_text(encoding="utf-8").splitlines()]


@cache
def wordings() -> dict[str, Any]:
    """Phrases for themes, genres, eras and things to avoid, and the sentences they go into: wordings.json.

    Each has a `train` and a `held_out` list; see `wishes` for what goes where.
    """
    return json.loads((HERE / "wordings.json").read_text(encoding="utf-8"))


@cache
def glossary() -> dict[str, list[str]]:
    """Theme or genre -> sentences of general English on it: glossary.txt, in the order of wordings.json."""
    lines = (HERE / "glossary.txt").read_text(encoding="utf-8").splitlines()
    subjects = [*wordings()["themes"], *wordings()["genres"]]
    return {subject: lines[6 * number : 6 * number + 6] for number, subject in enumerate(subjects)}


def bare(text: str) -> str:
    """A text as lower-case words with single spaces: what two wordings are compared by."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


@cache
def held_out_phrases() -> frozenset[str]:
    """All held-out wordings, `bare`."""

    def collect(node: Any, held_out: bool) -> set[str]:
        if isinstance(node, dict):
            return {text for key, below in node.items() for text in collect(below, held_out or key == "held_out")}
        return {bare(str(text)) for text in node} if held_out else set()

    return frozenset(collect(wordings(), False))
