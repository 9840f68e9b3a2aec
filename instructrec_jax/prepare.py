"""Turn public recommendation data into items, interactions and instruction examples.

    python -m instructrec_jax.prepare movielens --source FOLDER --out FOLDER [--k_core 5] [--min_rating 4] ...
    python -m instructrec_jax.prepare recbole   --source FOLDER --out FOLDER ...
    python -m instructrec_jax.prepare sasrec    --source FILE --items FILE --out FOLDER ...
    python -m instructrec_jax.prepare p5        --source FOLDER --out FOLDER ...
    python -m instructrec_jax.prepare sequences --source FOLDER --out FOLDER [--sequence_limit 20] ...
    python -m instructrec_jax.prepare amazon    --source FOLDER --out FOLDER [--on_bad_line skip] ...
    python -m instructrec_jax.prepare goodbooks --source FOLDER --out FOLDER ...
    python -m instructrec_jax.prepare table     --source FILE --items FILE --out FOLDER [--user_column who] ...
    python -m instructrec_jax.prepare tags      --source tags.csv --catalogue FOLDER --out FOLDER ...

All but tags take `--split leave_one_out | ratio | global_time [--validation 0.1] [--test 0.1]`.
`python -m instructrec_jax.prepare movielens --help` explains every setting.
"""

from typing import Any

from instructrec_jax.data.example import suggest
from instructrec_jax.preparation.formats import SOURCES
from instructrec_jax.preparation.prepare_data import prepare
from instructrec_jax.preparation.prepare_tags import TagsConfig, prepare_tags
from instructrec_jax.preparation.wording.teacher import Teacher
from instructrec_jax.runs.config import main_guard, parse


def main(args: list[str]) -> dict[str, Any]:
    """Run the verb with command-line arguments; prints and returns the card.

    Bad arguments and unusable data are ValueErrors (ConfigError for settings).
    """
    reader, *rest = args or ["--help"]
    if reader in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0)
    if reader == "tags":
        tags = parse(TagsConfig, rest, default=None)
        card = prepare_tags(tags)
        print(describe_tags(card, tags.out))
        return card
    if reader not in SOURCES:
        hint = suggest(reader, [*SOURCES, "tags"])
        raise ValueError(f"unknown source {reader!r}: the first word is one of {', '.join(SOURCES)}, tags.{hint}")
    config = parse(SOURCES[reader], rest, default=None)
    card = prepare(config, None if config.teacher is None else open_teacher(config.teacher))
    print(describe(card, config.out))
    return card


def open_teacher(path: str) -> Teacher:
    from instructrec_jax.answering.language_model import (
        LanguageModel,  # networks take seconds to import, and few ask for a teacher
    )

    model = LanguageModel(path)
    return lambda prompts: [answer.text for answer in model.generate(prompts, progress=True)]


def describe(card: dict[str, Any], out: str) -> str:
    """The card as a few lines to read."""
    examples = card["examples"]
    left_out = [
        f"{card[key]:,} {what}"
        for key, what in (
            ("bad_lines", "bad lines (listed in bad_lines.txt)"),
            ("below_min_rating", "below the minimum rating"),
            ("repeats", "repeats of a user's own item"),
            ("outside_k_core", f"outside the {card['settings']['k_core']}-core"),
            ("beyond_sequence_limit", f"before a user's last {card['settings']['sequence_limit']}"),
        )
        if card[key]
    ]
    lines = [
        f"{card['source']} → {out}",
        f"  users         {card['users']:>12,}",
        f"  items         {card['items']:>12,}",
        f"  interactions  {card['interactions']:>12,}   of {card['interactions_read']:,} read",
        f"  density       {card['density']:>12.3%}",
        f"  examples      {examples['train']:>12,} train, {examples['validation']:,} validation, "
        f"{examples['test']:,} test ({card['settings']['split'].replace('_', '-')})",
        f"  left out      {'; '.join(left_out) or 'nothing'}",
    ]
    if card["users_only_in_train"]:
        lines.append(f"  note: {card['users_only_in_train']:,} users have nothing held out and stay in train")
    if card["new_users"]:
        lines.append(f"  note: {card['new_users']:,} users have nothing in train: they begin without a history")
    if card["new_items"]:
        lines.append(f"  note: {card['new_items']:,} items occur in validation or test but not in train")
    if "reworded_by_teacher" in card:
        lines.append(f"  note: {card['reworded_by_teacher']:,} training examples have the teacher's words")
    if "test_from" in card:
        lines.append(
            f"  note: validation begins at time {card['validation_from']:.0f}, test at {card['test_from']:.0f}"
        )
    if not card["has_timestamps"]:
        lines.append("  note: the source has no timestamps; the order of its lines is taken as the order in time")
    return "\n".join(lines)


def describe_tags(card: dict[str, Any], out: str) -> str:
    """The same of tags made into requests."""
    examples = card["examples"]
    lines = [
        f"{card['source']} → {out}",
        f"  applications  {card['tag_applications']:>12,}   of {card['users_with_tags']:,} users, left out of splits/",
        f"  items         {card['items']:>12,}",
        f"  requests      {examples['train']:>12,} train, {examples['validation']:,} validation, "
        f"{examples['test']:,} test",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main_guard(main)
