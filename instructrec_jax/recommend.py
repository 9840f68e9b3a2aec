"""Recommend items of a catalogue with a tuned run: `python -m instructrec_jax.recommend RUN`.

    recommend RUN --history "Alien; The Thing" --instruction "something scary in space"
    recommend RUN --user 42 --k 5 --where genre=Horror --where "year>1990" --exclude "Event Horizon"
    recommend RUN --input requests.jsonl --out answers.jsonl      many requests; also .csv
    recommend RUN --history Alien --rerank RUN2                   RUN2 reranks the best items, as tuned by `evaluate`
    recommend RUN --user 42 --hybrid coKNN                        coKNN's scores mixed in, as tuned by `evaluate`
    recommend RUN --image photo.jpg              "like this one": the items with the nearest pictures
    recommend RUN --instruction "..." --items new_items.jsonl     also items that RUN was not trained on, by their texts

Evidence: how far an item's score falls without a word or an item of the history. `id:...` names an item by its id.
"""

import json
import sys
from contextlib import nullcontext

from instructrec_jax.answering.checked_options import REQUEST, recommend_options
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: recommend_options(__doc__, args))

from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Answer, Request, check_out, read_requests, write_answers
from instructrec_jax.answering.terminal import ask_person, named_weight, table
from instructrec_jax.distributed.heartbeat import heartbeat


def main(args: list[str]) -> None:
    options, rest = recommend_options(__doc__, args)
    if options.out is not None:
        check_out(options.out)
    one = {name: getattr(options, name) for name in REQUEST}
    requests: list[Request | Answer] = [Request(**one)] if options.input is None else read_requests(options.input)
    rerank, hybrid = named_weight("--rerank", options.rerank), named_weight("--hybrid", options.hybrid)
    model = Recommender(
        options.run,
        rerank=rerank[0],
        hybrid=hybrid[0],
        weight=hybrid[1] if rerank[0] is None else rerank[1],
        retrieve=options.retrieve,
        items=options.items,
        overrides=rest,
        step=options.step,
    )
    on_terminal = options.input is None and sys.stdin.isatty() and sys.stderr.isatty()
    with nullcontext() if sys.stderr.isatty() else heartbeat(f"answering {len(requests):,} requests"):
        answers = model.recommend(
            requests,
            options.k,
            include_seen=options.include_seen,
            skip_unknown=options.on_unknown == "skip",
            evidence=not options.no_evidence,
            ask=ask_person if on_terminal else None,
        )
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


def show_one(answer: Answer, form: str) -> None:
    if answer.error is not None:
        raise ValueError(answer.error)
    print(json.dumps(answer.to_record(), ensure_ascii=False, indent=2) if form == "json" else table(answer))


if __name__ == "__main__":
    main_guard(main)
