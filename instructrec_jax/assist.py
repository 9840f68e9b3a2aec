"""Answer customers' requests with tuned runs: `python -m instructrec_jax.assist RUN --actions actions.yaml "..."`.

    assist RUN --tune_threshold in_scope.jsonl out_of_scope.txt      from when on a request is nobody's business
    assist RUN --actions actions.yaml "where is my order 4711?"      intent, slots, action and reply as JSON
    assist RUN --actions actions.yaml --input requests.jsonl --out answers.jsonl
    assist RUN --actions actions.yaml --slots RUN2 "..."             slots by a token_classification run (BIO labels)

RUN is a classification run whose labels are the intents. Requests come from the command line, a file (.txt: one a line;
JSONL, CSV ...: a field of records) or stdin, one a line. A request whose score is below the threshold is out of scope:
it is handed over to a person.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.answering.classifier import Classifier, open_tagger
from instructrec_jax.answering.desk import Actions, matched, read_actions, respond, tagged, tagged_slots
from instructrec_jax.answering.out_of_scope import SCORES, ScoreName, scope_score, write_threshold
from instructrec_jax.answering.records import blocks, read_records, stdin, value_of
from instructrec_jax.data.example import BadExample
from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.runs.config import main_guard

BATCH = 64  # requests that are labelled at a time
Requests = Iterator[tuple[str, str]]  # (where, text)


class Desk:
    """A run with its actions, opened to answer requests.

    Args:
      run: run directory of a classification task whose labels are the intents.
      actions: the actions file, see docs/customer_service.md.
      slots: run directory of a token_classification task with BIO labels; its slots go before those of patterns.
      threshold: of the score, below which a request is out of scope; None: the one that was tuned for the run, if any.
      score: what is compared with `threshold`; None: as tuned, else "max_probability".
      instruction: what stood before each request in training, if anything.

    Raises:
      ValueError: runs of other tasks, a broken actions file, a threshold of another score than was tuned.
    """

    def __init__(
        self,
        run: str | Path,
        actions: str | Path,
        *,
        slots: str | Path | None = None,
        threshold: float | None = None,
        score: ScoreName | None = None,
        instruction: str = "",
    ):
        self.classifier = Classifier([Path(run)], instruction=instruction)
        self.tagger = None if slots is None else open_tagger(Path(slots))
        found = [] if self.tagger is None else tagged_slots(self.tagger.task.labels)
        self.actions: Actions = read_actions(Path(actions), self.classifier.labels, found)
        tuned = Path(run) / "assist" / "threshold.json"
        self.score: ScoreName = score or "max_probability"
        self.threshold = threshold
        if threshold is None and tuned.is_file():
            kept = read_json(tuned)
            if score not in (None, kept["score"]):
                raise ValueError(
                    f"{tuned} was tuned for {kept['score']}, not for {score}: tune anew, or leave --score."
                )
            self.score, self.threshold = kept["score"], kept["threshold"]

    def answer(self, requests: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Answers (where, text) pairs: text, intent, confidence, out_of_scope, slots, action, reply (and missing).

        "confidence" is the intent's probability; "scope_score" what the threshold is compared with. Raises BadExample,
        naming where, for a text that the run cannot read.
        """
        logits = self.classifier.logits([self.classifier.encode(text, where) for where, text in requests])[0]
        shares, scores = probabilities(logits), scope_score(self.score, logits)
        answers = []
        for (where, text), share, score in zip(requests, shares, scores, strict=True):
            intent = self.classifier.labels[int(share.argmax())]
            outside = self.threshold is not None and bool(score < self.threshold)
            slots = matched(self.actions.slots, text)
            if self.tagger is not None:
                slots |= tagged(self.tagger, text, where)
            answers.append(
                {
                    "text": text,
                    "intent": intent,
                    "confidence": float(share.max()),
                    "out_of_scope": outside,
                    "scope_score": float(score),
                    "slots": slots,
                    **respond(self.actions, None if outside else intent, slots),
                }
            )
        return answers


def tune_threshold(
    run: str | Path,
    inside: Requests,
    outside: Requests,
    *,
    score: ScoreName = "max_probability",
    rate: float = 0.05,
    instruction: str = "",
) -> dict[str, Any]:
    """Chooses the threshold of a run: the lowest that takes `rate` at most of the requests out of scope.

    Writes threshold.json, roc.json (of both scores) and roc.png into RUN/assist; returns what threshold.json says.
    """
    classifier = Classifier([Path(run)], instruction=instruction)

    def logits(requests: Requests, name: str) -> np.ndarray:
        found = []
        for block in blocks(requests, BATCH):
            found.append(classifier.logits([classifier.encode(text, where) for where, text in block])[0])
        if not found:
            raise ValueError(f"there are no requests {name}: a threshold needs some of both kinds.")
        return np.concatenate(found)

    both = logits(inside, "in scope"), logits(outside, "out of scope")
    return write_threshold(Path(run) / "assist", *both, score, rate)


def read_requests(source: str, field: str | None = None) -> Requests:
    """(where, text) of a file or of stdin ("-"): one request a line of .txt and stdin, else a field of records.

    Args:
      field: None: "text", or "instruction" in records without it.

    Raises BadExample for a record without a text. Blank lines are passed over.
    """
    if source == "-" or source.endswith(".txt"):
        data = stdin() if source == "-" else open(source, "rb")
        with data:
            for number, line in enumerate(data, 1):
                where = f"{'stdin' if source == '-' else source}, line {number}"
                try:
                    text = line.decode("utf-8-sig").strip()
                except UnicodeDecodeError as error:
                    raise BadExample("", "not UTF-8", f"{error}: save it as UTF-8.", where) from None
                if text:
                    yield where, text
        return
    for where, record in read_records(source):
        if isinstance(record, BadExample):
            raise record
        name = field or ("instruction" if "text" not in record and "instruction" in record else "text")
        try:
            text = value_of(record, name, "--text_field")
            if not isinstance(text, str):
                raise BadExample(name, "wrong type", f"expected a text, found {text!r:.60}.")
        except BadExample as error:
            error.where = where
            raise
        yield where, text


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m instructrec_jax.assist", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="run directory of a classification task: the intents")
    parser.add_argument("request", nargs="?", help="what the customer says; without it and --input: stdin, one a line")
    parser.add_argument("--actions", type=Path, help="YAML: intents with action, reply and required slots")
    parser.add_argument("--slots", type=Path, help="run directory of a token_classification task with BIO labels")
    parser.add_argument("--input", help=".txt file, one request a line, or JSONL, CSV ... file")
    parser.add_argument("--text_field", help="of the records of --input; default: text, else instruction")
    parser.add_argument("--out", type=Path, help="JSONL file for the answers; default: stdout")
    parser.add_argument("--threshold", type=float, help="of the score; default: as tuned, else nothing is out of scope")
    parser.add_argument("--score", choices=SCORES, help="what tells the scope; default: as tuned, or max_probability")
    parser.add_argument("--instruction", default="", help="what stood before the texts in training, if anything")
    parser.add_argument(
        "--tune_threshold", nargs=2, metavar=("IN_SCOPE", "OUT_OF_SCOPE"), help="files of requests of both kinds"
    )
    parser.add_argument(
        "--false_positive_rate", type=float, default=0.05, help="of the requests out of scope, taken at most; 0.05"
    )
    options = parser.parse_intermixed_args(args)
    if options.tune_threshold is not None:
        inside, outside = (read_requests(file, options.text_field) for file in options.tune_threshold)
        wanted = {"score": options.score or "max_probability", "rate": options.false_positive_rate}
        chosen = tune_threshold(options.run, inside, outside, instruction=options.instruction, **wanted)
        print(json.dumps(chosen, indent=2))
        print(f"written: {options.run / 'assist'}/threshold.json, roc.json, roc.png", file=sys.stderr)
        return
    if options.actions is None:
        raise ValueError("--actions is missing: a YAML file that says what to do for each intent.")
    if options.request is not None and options.input is not None:
        raise ValueError("give either a request or --input, not both.")
    if options.out is not None and options.out.exists():
        raise ValueError(f"{options.out} exists already: choose another --out.")
    desk = Desk(
        options.run,
        options.actions,
        slots=options.slots,
        threshold=options.threshold,
        score=options.score,
        instruction=options.instruction,
    )
    if desk.threshold is None:
        print("note: no threshold is tuned or given, so every request is taken as in scope.", file=sys.stderr)
    if options.request is not None:
        requests: Requests = iter([("the request", options.request)])
    else:
        requests = read_requests(options.input or "-", options.text_field)
    live = options.request is None and options.input is None
    answers = (answer for block in blocks(requests, BATCH, live=live) for answer in desk.answer(block))
    if options.out is not None:
        count = write_jsonl(options.out, answers)
        print(f"{count:,} answers written: {options.out}", file=sys.stderr)
        return
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False, indent=None if options.request is None else 2), flush=True)


if __name__ == "__main__":
    main_guard(main)
