"""Where a run comes from, kept in summary.json for its model card: sources, their counts and licenses, the backbone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from instructrec_jax.data.data_config import Sources
from instructrec_jax.data.rows import find_files
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.evaluation.tables import Provenance, TrainedOn
from instructrec_jax.parsing import parse_yaml
from instructrec_jax.remote import is_url
from instructrec_jax.runs.config import Config

SPLITS: tuple[Sources, ...] = ("train", "validation", "test", "unlabeled")
_BLOCK = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LARGEST = 1_000_000  # bytes of a README.md


def provenance(
    config: Config, folder: Path | None, counts: Mapping[Sources, Sequence[int | None]], devices: int
) -> Provenance:
    """What summary.json keeps.

    Args:
      folder: of the backbone, whose README.md may state its license.
      counts: examples of the sources of each split that was opened; None: of a stream.
      devices: that trained.
    """
    found: list[TrainedOn] = []
    for split in SPLITS:
        for number, source in enumerate(getattr(config.data, split)):
            said = front_matter(readme_beside(source))
            own = counts.get(split, ())
            found.append(
                {
                    "split": split,
                    "name": source.name or source.path,
                    "path": source.path,
                    "examples": own[number] if number < len(own) else None,
                    "license": [source.license] if source.license else said["license"],
                    "language": said["language"],
                }
            )
    backbone = front_matter(None if folder is None else folder / "README.md")
    return {"sources": found, "backbone_license": backbone["license"], "device_count": devices}


def readme_beside(source: SourceConfig) -> Path | None:
    """README.md in the folder of a source's files, or of a data set on disk; None for others."""
    if is_url(source.path) or source.kind == "tfds":
        return None
    if source.kind != "file":
        return Path(source.path).expanduser() / "README.md"
    try:
        return find_files(source.path)[0].parent / "README.md"
    except (OSError, ValueError):  # examples given from Python have no file before the run keeps them
        return None


def front_matter(readme: Path | None) -> dict[str, list[str]]:
    """The fields `license` and `language` of the YAML at the start of a README.md, as the HuggingFace hub has it.

    [] for what is not stated, or not readable as such: licenses are never guessed from a text.
    """
    stated: dict[str, list[str]] = {"license": [], "language": []}
    try:
        if readme is None or not readme.is_file() or readme.stat().st_size > LARGEST:
            return stated
        block = _BLOCK.match(readme.read_text(encoding="utf-8"))
        values = parse_yaml(block[1], str(readme)) if block else None
    except (OSError, ValueError):
        return stated
    if not isinstance(values, dict):
        return stated
    for name in stated:
        value = values.get(name)
        listed = value if isinstance(value, list) else [value]
        stated[name] = [each.strip() for each in listed if isinstance(each, str) and each.strip()]
    return stated
