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

from instructrec_jax.answering.prepare_arguments import prepare_settings
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: prepare_settings(__doc__, args))

from instructrec_jax.answering.preparing import describe_ids, open_teacher, prepare_ids
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.preparation.card_text import describe, describe_tags
from instructrec_jax.preparation.own_config import IdsConfig, InspectConfig, MaskFilesConfig
from instructrec_jax.preparation.own_files import of_files
from instructrec_jax.preparation.prepare_data import prepare
from instructrec_jax.preparation.prepare_tags import TagsConfig, prepare_tags


def main(args: list[str]) -> dict[str, object]:
    """Runs the verb with command-line arguments; prints and returns the card.

    Raises ValueError for invalid arguments and unusable data (ConfigError for settings).
    """
    config = prepare_settings(__doc__, args)
    if isinstance(config, InspectConfig | MaskFilesConfig):
        return of_files(config)
    with heartbeat("preparing the data"):
        if isinstance(config, TagsConfig):
            card, show = prepare_tags(config), describe_tags
        elif isinstance(config, IdsConfig):
            card, show = prepare_ids(config), describe_ids
        else:
            card, show = prepare(config, None if config.teacher is None else open_teacher(config.teacher)), describe
    print(show(card, config.out))
    return card


if __name__ == "__main__":
    main_guard(main)
