"""The configuration as YAML, every guess with its reason as a comment."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from instructrec_jax.parsing import YamlDumper
from instructrec_jax.preparation.inspection.sizing import Network
from instructrec_jax.preparation.inspection.splitting import SPLITS, Parts
from instructrec_jax.preparation.inspection.table import Guess, Setting

WIDTH = 120


def configuration(
    path: Path,
    files: Sequence[str],
    guess: Guess,
    network: Network,
    parts: Parts,
    data: Path,
    sizes: Mapping[str, Setting],
    notes: Sequence[str],
) -> str:
    """The text of the file.

    Args:
      path: of the file itself.
      files: that were inspected.
      data: folder of the splits.
      sizes: steps, rank, learning_rate, batch_size, max_length, truncate, every.
      notes: about rows that were left out.
    """
    lines = comment(
        f"Made by `prepare inspect` from {', '.join(files)}. Every guess has its reason; change what you like."
    )
    lines += [line for note in notes for line in comment(note)]
    lines += [f"run_dir: {flow(f'runs/{path.stem}')}", "seed: 0", *entry("steps", sizes["steps"])]
    estimate = "small, fast and good for texts in English; --backbone names another"
    chosen = Setting(network.name, "" if network.exact else estimate)
    lines += ["backbone:", *entry("path", chosen, 1)]
    if "rank" in sizes:
        lines += ["lora:", *entry("rank", sizes["rank"], 1)]
    lines += ["task:"]
    for name, setting in guess.task.items():
        lines += entry(name, setting, 1)
    lines += ["data:", *comment(f"{parts.why}.", 1)]
    reasons = [
        f"{name}: {_short(setting.why)}" for name, setting in guess.fields.items() if setting.why and name != "ignore"
    ]
    lines += [line for reason in reasons for line in comment(f"fields.{reason}", 1)]
    fields = flow({name: setting.value for name, setting in guess.fields.items()})
    for split in SPLITS:
        if parts.counts[split]:
            lines += [f"  {split}:  # {parts.counts[split]:,} rows"]
            lines += [f"    - path: {flow(str(data / f'{split}.jsonl'))}", f"      fields: {fields}"]
    for name in ("batch_size", "max_length", "truncate"):
        lines += entry(name, sizes[name], 1) if name in sizes else []
    lines += ["optimizer:", *entry("learning_rate", sizes["learning_rate"], 1)]
    lines += ["evaluation:", *entry("every", sizes["every"], 1)]
    lines += ["checkpoint:", *entry("every", Setting(sizes["every"].value), 1)]
    return "\n".join(lines) + "\n"


def entry(name: str, setting: Setting, depth: int = 0) -> list[str]:
    """`name: value  # why`, with a long reason above it."""
    line = f"{'  ' * depth}{name}: {flow(setting.value)}"
    if not setting.why:
        return [line]
    said = f"{line}  # {_clean(setting.why)}"
    return [said] if len(said) <= WIDTH else [*comment(setting.why, depth), line]


def comment(text: str, depth: int = 0) -> list[str]:
    """The text as lines of comments."""
    lines, line = [], ""
    for word in _clean(text).split():
        if line and len(line) + len(word) + 2 * depth + 3 > WIDTH:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [f"{'  ' * depth}# {line}" for line in [*lines, line]]


def flow(value: object) -> str:
    """A value in YAML's flow style: one line, unless a text in it has several."""
    text = yaml.dump(
        [value], Dumper=YamlDumper, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False
    )
    return text.strip().removeprefix("[").removesuffix("]")


def _clean(text: str) -> str:
    """The text without characters that YAML refuses in comments."""
    return " ".join(
        re.sub(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]", " ", text).split()
    )


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:297]}..."
