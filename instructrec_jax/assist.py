"""Answer customer requests with tuned runs: `python -m instructrec_jax.assist RUN --actions FILE "..."`.

    assist RUN --tune_threshold in_scope.jsonl out_of_scope.txt      tune the out-of-scope threshold
    assist RUN --actions actions.yaml "where is my order 4711?"      intent, slots, action and reply as JSON
    assist RUN --actions actions.yaml --input requests.jsonl --out answers.jsonl
    assist RUN --actions actions.yaml --slots RUN2 "..."             slots by a token_classification run (BIO labels)

RUN is a classification run whose labels are the intents. Requests come from the command line, a file (.txt: one per
line; JSONL, CSV ...: a field of the records) or stdin, one per line. A request with a score below the threshold is out
of scope and is handed over to a person.
"""

import json
import sys

from instructrec_jax.answering.arguments import assist_parser, new_file, parse_options
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_options(assist_parser(__doc__), args))

from instructrec_jax.answering.desk import BATCH, Desk, Requests, read_requests, tune_threshold
from instructrec_jax.answering.records import blocks
from instructrec_jax.files import append_jsonl, write_text
from instructrec_jax.runs.bucket import send


def main(args: list[str]) -> None:
    options = parse_options(assist_parser(__doc__), args)
    if options.tune_threshold is not None:
        inside, outside = (read_requests(file, options.text_field) for file in options.tune_threshold)
        chosen = tune_threshold(
            options.run,
            inside,
            outside,
            score=options.score or "max_probability",
            rate=options.false_positive_rate,
            instruction=options.instruction,
        )
        send(options.run)
        print(json.dumps(chosen, indent=2))
        print(f"written: {options.run / 'assist'}/threshold.json, roc.json, roc.png", file=sys.stderr)
        return
    if options.actions is None:
        raise ValueError("--actions is missing: a YAML file with an action and a reply for each intent.")
    if options.request is not None and options.input is not None:
        raise ValueError("give either a request or --input, not both.")
    new_file(options.out)
    desk = Desk(
        options.run,
        options.actions,
        slots=options.slots,
        threshold=options.threshold,
        score=options.score,
        instruction=options.instruction,
    )
    if desk.threshold is None:
        print("note: no threshold is tuned or given, so every request counts as in scope.", file=sys.stderr)
    if options.request is not None:
        requests: Requests = iter([("the request", options.request)])
    else:
        requests = read_requests(options.input or "-", options.text_field)
    live = options.request is None and options.input is None
    answers = desk.answers(requests, live=live)
    if options.out is not None:
        write_text(options.out, "")
        count = 0
        for block in blocks(answers, BATCH):  # block by block: a later error loses no answer
            count += append_jsonl(options.out, block)
        print(f"{count:,} answers written: {options.out}", file=sys.stderr)
        return
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False, indent=None if options.request is None else 2), flush=True)


if __name__ == "__main__":
    main_guard(main)
