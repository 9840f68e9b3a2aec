"""Prepare your own files (inspect), or public recommendation data: `python -m instructrec_jax.prepare FORMAT`.

    prepare inspect FILE... [--backbone FOLDER] [--max_length 2048]
    prepare inspect FILE... --out my.yaml [--backbone FOLDER] [--target COLUMN]
    prepare mask FILE... --out masked.jsonl [--kinds '[email, phone]'] [--columns '[text]']
    prepare table --source FILE --items FILE --out FOLDER [--user_column who]
    prepare movielens --source FOLDER --out FOLDER [--k_core 5] [--min_rating 4]
    prepare amazon --source FOLDER --out FOLDER [--on_bad_line skip]
    prepare goodbooks --source FOLDER --out FOLDER
    prepare recbole --source FOLDER --out FOLDER
    prepare sasrec --source FILE --items FILE --out FOLDER
    prepare p5 --source FOLDER --out FOLDER
    prepare sequences --source FOLDER --out FOLDER [--sequence_limit 20]
    prepare tags --source tags.csv --catalogue FOLDER --out FOLDER
    prepare ids --catalogue FOLDER --encoder FOLDER --network FOLDER --out FOLDER

inspect shows what data files would become: form, rendered examples, token lengths, duplicates, bad rows. With --out it
looks at their columns and writes a configuration that trains on them. mask writes their rows with
placeholders in place of personal data. ids writes a language model that knows the items of a prepared
folder by codes, for task.type generative. The others write a folder of items, interactions and
instructions, with a train.yaml. All of them except tags have
`--split leave_one_out | ratio | global_time`, with `--validation 0.1 --test 0.1`.

`prepare movielens --help` lists the settings of a format.
"""

from dataclasses import replace
from typing import Any

from instructrec_jax.answering.preparing import IdsConfig, describe_ids, open_teacher, prepare_ids
from instructrec_jax.data.example import suggest
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.preparation.card_text import describe, describe_tags
from instructrec_jax.preparation.formats import SOURCES
from instructrec_jax.preparation.own_files import FORMS, of_files, split_arguments
from instructrec_jax.preparation.prepare_data import prepare
from instructrec_jax.preparation.prepare_tags import TagsConfig, prepare_tags
from instructrec_jax.runs.config import main_guard, parse
from instructrec_jax.runs.help_text import fitted_help

OWN: dict[str, tuple[Any, Any, Any]] = {  # settings, what makes the folder, and what describes it
    "tags": (TagsConfig, prepare_tags, describe_tags),
    "ids": (IdsConfig, prepare_ids, describe_ids),
}


def main(args: list[str]) -> dict[str, object]:
    """Runs the verb with command-line arguments; prints and returns the card.

    Raises ValueError for invalid arguments and unusable data (ConfigError for settings).
    """
    reader, *rest = args or ["--help"]
    if reader in ("-h", "--help"):
        print(fitted_help(__doc__))
        raise SystemExit(0)
    if reader in ("inspect", "mask"):
        files, options = split_arguments(rest)
        return of_files(replace(parse(FORMS[reader], options, default=None), files=files))
    if reader in OWN:
        kind, make, show = OWN[reader]
        settings = parse(kind, rest, default=None)
        with heartbeat("preparing the data"):
            card = make(settings)
        print(show(card, settings.out))
        return card
    if reader not in SOURCES:
        known = ["inspect", "mask", *SOURCES, *OWN]
        raise ValueError(f"unknown format {reader!r}: choose from {', '.join(known)}.{suggest(reader, known)}")
    config = parse(SOURCES[reader], rest, default=None)
    with heartbeat("preparing the data"):
        card = prepare(config, None if config.teacher is None else open_teacher(config.teacher))
    print(describe(card, config.out))
    return card


if __name__ == "__main__":
    main_guard(main)
