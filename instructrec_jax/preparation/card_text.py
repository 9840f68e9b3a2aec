"""The card of a prepared folder as text for the terminal."""

import shlex
from collections.abc import Mapping

from instructrec_jax.files import check_type
from instructrec_jax.preparation.train_settings import FILE


def describe(card: Mapping[str, object], out: str) -> str:
    """The card of interactions as a few lines."""
    examples, settings = _inside(card, "examples"), _inside(card, "settings")
    left_out = [
        f"{card[key]:,} {what}"
        for key, what in (
            ("bad_lines", "bad lines (listed in bad_lines.txt)"),
            ("below_min_rating", "below the minimum rating"),
            ("repeats", "repeated items of a user"),
            ("outside_k_core", f"outside the {settings['k_core']}-core"),
            ("beyond_sequence_limit", f"before a user's last {settings['sequence_limit']}"),
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
        f"{examples['test']:,} test ({str(settings['split']).replace('_', '-')})",
        f"  left out      {'; '.join(left_out) or 'nothing'}",
    ]
    if card["users_only_in_train"]:
        lines.append(f"  note: {card['users_only_in_train']:,} users have no held-out items and stay in train")
    if card["new_users"]:
        lines.append(f"  note: {card['new_users']:,} users have no items in train: they start without a history")
    if card["new_items"]:
        lines.append(f"  note: {card['new_items']:,} items occur in validation or test but not in train")
    if "reworded_by_teacher" in card:
        lines.append(f"  note: {card['reworded_by_teacher']:,} training examples were reworded by the teacher")
    if "test_from" in card:
        lines.append(
            f"  note: validation starts at time {card['validation_from']:.0f}, test at {card['test_from']:.0f}"
        )
    if "instructions" in card:
        lines.append(
            "  note: no instructions/*.jsonl; training makes the examples from interactions.parquet "
            "(--instructions files writes them)"
        )
    if not card["has_timestamps"]:
        lines.append("  note: the source has no timestamps; its line order is used as the time order")
    return "\n".join([*lines, *_next(out)])


def describe_tags(card: Mapping[str, object], out: str) -> str:
    """The card of tags as a few lines."""
    examples = _inside(card, "examples")
    lines = [
        f"{card['source']} → {out}",
        f"  applications  {card['tag_applications']:>12,}   of {card['users_with_tags']:,} users, left out of splits/",
        f"  items         {card['items']:>12,}",
        f"  requests      {examples['train']:>12,} train, {examples['validation']:,} validation, "
        f"{examples['test']:,} test",
    ]
    return "\n".join([*lines, *_next(out)])


def _next(out: str) -> list[str]:
    settings = shlex.quote(f"{out}/{FILE}")
    return ["", f"next: python -m instructrec_jax.train --config_path {settings}"]


def _inside(card: Mapping[str, object], name: str) -> dict[str, object]:
    return check_type(card[name], dict[str, object], f"card.json, {name}")
