"""Recommend items of a catalogue with a tuned run: `python -m instructrec_jax.recommend RUN`.

    recommend RUN --history "Alien; The Thing" --instruction "something scary in space"
    recommend RUN --user 42 --k 5 --where genre=Horror --where "year>1990" --exclude "Event Horizon"
    recommend RUN --input requests.jsonl --out answers.jsonl      many at once; .csv does as well
    recommend RUN --history Alien --rerank RUN2 --retrieve 100    RUN2 ranks the 100 best of RUN anew
    recommend RUN --user 42 --hybrid coKNN=0.15                   other scores mixed in, by their weight
    recommend RUN --instruction "..." --items new_items.jsonl     items that RUN never saw, by their texts

The evidence behind each item says how much its score falls when an item of the history, or a word of the instruction,
is left out. `id:...` names an item by its id wherever a title can stand.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from instructrec_jax.answering.evidence import Part, contributions, strongest, without_word, words_of
from instructrec_jax.answering.filters import matching
from instructrec_jax.answering.ranker import Ranker, run_settings
from instructrec_jax.answering.requests import (
    Answer,
    Recommendation,
    Request,
    check_out,
    read_requests,
    split_titles,
    write_answers,
)
from instructrec_jax.answering.terminal import ask_person, table
from instructrec_jax.answering.titles import Ask, Titles, resolve
from instructrec_jax.data.example import Example, check_example
from instructrec_jax.ranking.catalogue import Splits, has_splits
from instructrec_jax.ranking.fusion import retrieve
from instructrec_jax.runs.config import Config, main_guard
from instructrec_jax.tasks.base import Encoded

REQUESTS = 64  # that are scored at a time
MOST_CANDIDATES = 1000  # that a run is asked to score which cannot rank a whole catalogue cheaply
MOST_PARTS = 50  # items of a history that evidence looks at: the last


# ---------------------------------------------------------------- recommendations


@dataclass(frozen=True)
class Understood:
    """A request with its words looked up."""

    request: Request
    answer: Answer
    history: list[int]
    """item numbers, oldest first"""
    allowed: np.ndarray
    """bool [items]"""
    k: int


class Recommender:
    """A run (and perhaps a second one that ranks anew what the first finds), opened to answer requests.

    Args:
      run: run directory of a retrieval, sequence, reranker or language_model_ranking task.
      rerank: run directory of the second stage, on the same catalogue.
      retrieve: how many items the first stage hands to the second.
      hybrid: another ranker that is mixed into the first one's scores, and its weight from 0 to 1: a run directory, or
        a simple method by its name (coKNN, popularity ...). `evaluate --hybrid` finds the weight.
      items: file with items that the runs never saw (see `answering.new_items`).
      settings: of the first run, changed; None: as they are.
      step: which checkpoint of the first run; None: the best.

    Raises:
      ValueError: a folder that is no run, another task, catalogues that differ, a broken file of items.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        rerank: str | Path | None = None,
        retrieve: int = 100,
        hybrid: tuple[str, float] | None = None,
        items: str | Path | None = None,
        settings: Config | None = None,
        step: int | None = None,
    ):
        new = None if items is None else Path(items)
        self.first = Ranker(Path(run), settings, step=step, items=new)
        self.second = None if rerank is None else Ranker(Path(rerank), items=new)
        if hybrid is not None:
            self.first.mix_with(*hybrid, items=new)
        self.catalogue = self.first.catalogue
        self.retrieve = retrieve
        self.titles = Titles(self.catalogue)
        if retrieve < 1:
            raise ValueError(f"--retrieve must be at least 1, but is {retrieve}.")
        if self.second is not None and self.second.catalogue.ids != self.catalogue.ids:
            raise ValueError(f"{rerank} ranks another catalogue than {run}: train both on the same prepared folder.")

    @cached_property
    def users(self) -> dict[str, np.ndarray]:
        """User id -> items of all splits, oldest first."""
        if not has_splits(self.first.folder):
            return {}
        splits = Splits.load(self.first.folder, self.catalogue)
        parts = zip(splits.train, splits.validation, splits.test, strict=True)
        return {user: np.concatenate(each) for user, each in zip(splits.user_ids, parts, strict=True)}

    def recommend(
        self,
        requests: Sequence[Request],
        k: int = 10,
        *,
        include_seen: bool = False,
        skip_unknown: bool = False,
        evidence: bool = True,
        ask: Ask | None = None,
    ) -> list[Answer]:
        """Answers in the order of the requests; what is wrong with one is its `error`, and the others go on.

        Args:
          k: how many items each request gets, unless it says so itself.
          include_seen: also recommend items of the history.
          skip_unknown: leave out titles that are not in the catalogue, with a note.
          evidence: find out what moved each recommended item: another score for each word and item of the history.
          ask: asks a person about ambiguous titles; None: they are errors.
        """
        answers = []
        blocks = range(0, len(requests), REQUESTS)
        for start in tqdm(blocks, disable=None if len(blocks) > 1 else True):
            understood: list[Understood] = []
            for request in requests[start : start + REQUESTS]:
                answer = Answer(id=request.id, user=request.user)
                answers.append(answer)
                try:
                    options: dict[str, Any] = {"include_seen": include_seen, "skip_unknown": skip_unknown, "ask": ask}
                    wanted = k if request.k is None else request.k
                    understood.append(self._understand(request, answer, wanted, **options))
                except ValueError as error:
                    answer.error = str(error)
            self._answer(understood, evidence)
        return answers

    def _understand(
        self, request: Request, answer: Answer, k: int, *, include_seen: bool, skip_unknown: bool, ask: Ask | None
    ) -> Understood:
        if k < 1:
            raise ValueError(f"k must be at least 1, but is {k}.")
        if self.second is not None and k > self.retrieve:
            raise ValueError(f"k is {k}, but the first stage retrieves {self.retrieve} items: raise --retrieve.")

        def numbers(name: str, texts: Sequence[str]) -> list[int]:
            listed = split_titles(self.titles, texts)
            try:
                found, notes = resolve(self.titles, listed, skip_unknown=skip_unknown, ask=ask)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            answer.notes += [f"{name}: {note}" for note in notes]
            return found

        history = [*self._history_of(request.user), *numbers("history", request.history)]
        if not history and not request.instruction.strip():
            why = " (all titles of the history were left out)" if request.history else ""
            raise ValueError(f"there is nothing to go by{why}: give a user, a history or an instruction.")
        answer.history = [self.catalogue.name(item) for item in history]
        allowed = matching(self.catalogue, request.where)
        allowed[numbers("exclude", request.exclude)] = False
        if not include_seen:
            allowed[history] = False
        left = int(np.count_nonzero(allowed))
        if not left:
            raise ValueError("no item is left to recommend: ask for less with the conditions, or include seen items.")
        if left < k:
            answer.notes.append(f"only {left} items are left, fewer than the {k} asked for.")
        return Understood(request, answer, history, allowed, min(k, left))

    def _history_of(self, user: str | None) -> list[int]:
        if user is None:
            return []
        if user in self.users:
            return [int(item) for item in self.users[user]]
        if not self.users:
            raise ValueError(f"{self.first.folder} holds no users (splits/): give titles as the history instead.")
        near = get_close_matches(user, self.users, 3, 0.5)
        hint = f" The nearest ids: {', '.join(near)}." if near else f" An id looks like {next(iter(self.users))!r}."
        raise ValueError(f"there is no user {user!r} among {len(self.users):,}.{hint}")

    # -------------------------------------------------------------- scores

    def _answer(self, understood: list[Understood], evidence: bool) -> None:
        """Fills in the answers of a few requests."""
        last = self.second or self.first
        encoded: list[tuple[Encoded, Encoded]] = []
        asked: list[Understood] = []
        for each in understood:
            try:
                first = self._whole(self.first, each)
                final = first if self.second is None else self._whole(self.second, each)
            except ValueError as error:
                each.answer.error = str(error)
                continue
            each.answer.prompt = final.example.instruction
            if unread := last.unread(each.request.instruction):
                each.answer.notes.append(f"the model's tokenizer has no tokens for {', '.join(unread)}.")
            encoded.append((first, final))
            asked.append(each)
        found = self._rank([e[0] for e in encoded], [e[1] for e in encoded], asked)
        kept = [(each, e[1], items) for each, e, items in zip(asked, encoded, found, strict=True) if len(items[0])]
        moved = self._evidence(last, kept) if evidence else [[()] * len(items[0]) for _, _, items in kept]
        for (each, _, (items, scores)), reasons in zip(kept, moved, strict=True):
            each.answer.recommendations = [
                Recommendation(self.catalogue.ids[item], self.catalogue.name(item), float(score), rank, reason)
                for rank, (item, score, reason) in enumerate(zip(items, scores, reasons, strict=True), 1)
            ]

    def _whole(self, ranker: Ranker, each: Understood) -> Encoded:
        told = each.history[-ranker.wording.titles :] if ranker.tells_history else []
        encoded, cut = self._encode(ranker, each, each.history, told, each.request.instruction)
        each.answer.notes += cut
        return encoded

    def _encode(
        self, ranker: Ranker, each: Understood, history: Sequence[int], told: Sequence[int], wish: str
    ) -> tuple[Encoded, list[str]]:
        """A request in words with a history (item numbers) of which some items are told in the words."""
        name = "request" if each.request.id is None else f"request {each.request.id}"
        prompt = ranker.wording.prompt(self.catalogue, told, wish.strip())
        # Tasks encode examples that have an answer; what is scored does not look at it, so any item will do.
        placeholder = self.catalogue.ids[0]
        ids = tuple(self.catalogue.ids[item] for item in history)
        example = check_example(Example(instruction=prompt, output=placeholder, history=ids, id=name))
        return ranker.encode(example)

    def _rank(
        self, first: list[Encoded], last: list[Encoded], asked: list[Understood]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each request its best items and their scores, best first; an error of one alone is its answer's."""
        if not asked:
            return []
        if not self.first.task.retrieves:
            return [self._rank_few(e, each) for e, each in zip(first, asked, strict=True)]
        most = self.retrieve if self.second is not None else max(each.k for each in asked)
        items, values = self.first.best(first, most, np.stack([each.allowed for each in asked]))
        if self.second is not None:
            again = np.asarray(self.second.score(last, items), np.float64)
            values = np.where(np.isneginf(values), -np.inf, again)
            if np.isnan(values).any():
                raise ValueError("the second run gives scores that are NaN: a model that diverged has no ranking.")
            order = np.argsort(-values, axis=1, kind="stable")
            items, values = np.take_along_axis(items, order, 1), np.take_along_axis(values, order, 1)
        return [(items[row, : each.k], values[row, : each.k]) for row, each in enumerate(asked)]

    def _rank_few(self, encoded: Encoded, each: Understood) -> tuple[np.ndarray, np.ndarray]:
        """The same for one request to a run that scores an item at a time."""
        items = np.flatnonzero(each.allowed)
        nothing = np.empty(0, np.int64), np.empty(0)
        if self.second is not None or len(items) > MOST_CANDIDATES:
            each.answer.error = (
                f"this run reads each item anew for every request, so it ranks up to {MOST_CANDIDATES:,}, but "
                f"{len(items):,} are left. Retrieve with another run, and give this one as --rerank; or narrow the "
                "choice with --where."
            )
            return nothing
        try:
            scores = np.asarray(self.first.score([encoded], items[None]), np.float64)
        except ValueError as error:
            each.answer.error = str(error)
            return nothing
        best = retrieve(scores, each.k)[0]
        return items[best], scores[0, best]

    # -------------------------------------------------------------- evidence

    def _evidence(
        self, ranker: Ranker, kept: Sequence[tuple[Understood, Encoded, tuple[np.ndarray, np.ndarray]]]
    ) -> list[list[Any]]:
        """Of each request and recommended item, what moved it (see `answering.evidence`)."""
        if not kept:
            return []
        size = max(len(items) for _, _, (items, _) in kept)
        # rows of one length: the last item again
        items = np.stack([found[np.minimum(np.arange(size), len(found) - 1)] for _, _, (found, _) in kept])
        parts, variants = [], []
        for each, _, _ in kept:
            try:
                made = list(self._variants(ranker, each))
            except ValueError as error:
                each.answer.notes.append(f"there is no evidence: {error}")
                made = []
            parts.append([part for part, _ in made])
            variants.append([variant for _, variant in made])
        values = contributions(ranker.score, [whole for _, whole, _ in kept], variants, items)
        return [
            [strongest(own, moved[:, place]) for place in range(len(found))]
            for own, moved, (_, _, (found, _)) in zip(parts, values, kept, strict=True)
        ]

    def _variants(self, ranker: Ranker, each: Understood) -> Iterable[tuple[Part, Encoded]]:
        """The request without each item of its history, and without each word of its instruction."""
        history, wish = each.history, each.request.instruction
        told = history[-ranker.wording.titles :] if ranker.tells_history else []
        looked_at = (history if ranker.task.reads_history else told)[-MOST_PARTS:]
        for item in dict.fromkeys(looked_at):
            rest = [[other for other in items if other != item] for items in (history, told)]
            yield Part("history", self.catalogue.name(item)), self._encode(ranker, each, rest[0], rest[1], wish)[0]
        for word in words_of(wish):
            yield Part("word", word), self._encode(ranker, each, history, told, without_word(wish, word))[0]


def recommend(run: str | Path, requests: Sequence[Request], k: int = 10, **options: Any) -> list[Answer]:
    """Answers requests with a run directory; see `Recommender`, which opens it only once, for the options."""
    names = {"rerank", "retrieve", "hybrid", "items", "settings", "step"} & set(options)
    opening = {name: options.pop(name) for name in names}
    return Recommender(run, **opening).recommend(requests, k, **options)


# ---------------------------------------------------------------- the command line


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m instructrec_jax.recommend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings of train can follow: --mesh.tensor 2, --task.catalogue FOLDER.\n"
        "Exit code 1: a request of --input failed; 2: nothing could be done.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run directory of a task that ranks a catalogue")
    who = parser.add_argument_group("one request")
    who.add_argument("--user", metavar="ID", help="a user of the prepared folder, with all that is known of them")
    who.add_argument(
        "--history", action="append", default=[], metavar="TITLES", help='oldest first: "Alien; The Thing"'
    )
    who.add_argument("--instruction", default="", metavar="TEXT", help="what is wanted, in your own words")
    who.add_argument("--exclude", action="append", default=[], metavar="TITLE", help="not this one (repeatable)")
    who.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help='only items with this fact: genre=Horror, director!=..., "year>1990" (repeatable: all of them hold)',
    )
    many = parser.add_argument_group("many requests")
    many.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="JSONL or CSV of requests: user, history, instruction, exclude, where, k, id, as above",
    )
    many.add_argument("--out", type=Path, metavar="FILE", help=".jsonl or .csv to write; default: JSONL on stdout")
    how = parser.add_argument_group("what comes back")
    how.add_argument("--k", type=int, default=10, help="how many items (default: 10)")
    how.add_argument("--format", choices=("table", "json"), default="table", help="for one request (default: table)")
    how.add_argument("--include_seen", action="store_true", help="items of the history may be recommended again")
    how.add_argument(
        "--on_unknown",
        choices=("error", "skip"),
        default="error",
        help="titles that are not in the catalogue: refuse them (default), or leave them out with a note",
    )
    how.add_argument("--no_evidence", action="store_true", help="do not find out what moved each item: much faster")
    models = parser.add_argument_group("models and items")
    models.add_argument("--rerank", type=Path, metavar="RUN2", help="a run that ranks anew what RUN finds")
    models.add_argument("--retrieve", type=int, default=100, metavar="N", help="items for --rerank (default: 100)")
    models.add_argument(
        "--hybrid", metavar="OTHER=W", help="mix in a run or a simple method by its weight, such as coKNN=0.15"
    )
    models.add_argument("--items", type=Path, metavar="FILE", help="new items: title, and perhaps id, text, facts")
    models.add_argument("--step", type=int, help="which checkpoint of RUN; default: the best")
    options, rest = parser.parse_known_args(args)
    one = {name: getattr(options, name) for name in ("user", "history", "instruction", "exclude", "where")}
    if options.input is not None and any(one.values()):
        given = ", ".join(f"--{name}" for name, value in one.items() if value)
        raise ValueError(f"requests come from --input, so {given} has no place beside it: put it into the file.")
    if options.out is not None:
        if options.input is None:
            raise ValueError("--out is for the answers to --input; for one request, use --format json > FILE.")
        check_out(options.out)
    requests = [Request(**one)] if options.input is None else read_requests(options.input)
    settings = run_settings(options.run, rest) if rest and (options.run / "config.yaml").is_file() else None
    model = Recommender(
        options.run,
        rerank=options.rerank,
        retrieve=options.retrieve,
        hybrid=None if options.hybrid is None else parse_hybrid(options.hybrid),
        items=options.items,
        settings=settings,
        step=options.step,
    )
    on_terminal = options.input is None and sys.stdin.isatty() and sys.stderr.isatty()
    answered = iter(
        model.recommend(
            [request for request in requests if isinstance(request, Request)],
            options.k,
            include_seen=options.include_seen,
            skip_unknown=options.on_unknown == "skip",
            evidence=not options.no_evidence,
            ask=ask_person if on_terminal else None,
        )
    )
    answers = [request if isinstance(request, Answer) else next(answered) for request in requests]
    if options.input is None:
        show_one(answers[0], options.format)
        return
    if options.out is not None:
        write_answers(options.out, answers)
    else:
        for answer in answers:
            print(json.dumps(answer.to_record(), ensure_ascii=False))
    failed = sum(answer.error is not None for answer in answers)
    where = f" written: {options.out}" if options.out is not None else ""
    print(f"{len(answers) - failed:,} requests answered, {failed:,} failed.{where}", file=sys.stderr)
    if failed:
        sys.exit(1)


def parse_hybrid(text: str) -> tuple[str, float]:
    """("coKNN", 0.15) of "coKNN=0.15"."""
    other, _, weight = text.rpartition("=")
    try:
        return other, float(weight)
    except ValueError:
        raise ValueError(f"--hybrid is OTHER=WEIGHT, such as coKNN=0.15, but is {text!r}.") from None


def show_one(answer: Answer, form: str) -> None:
    if answer.error is not None:
        raise ValueError(answer.error)
    if form == "json":
        print(json.dumps(answer.to_record(), ensure_ascii=False, indent=2))
    else:
        print(table(answer))


if __name__ == "__main__":
    main_guard(main)
