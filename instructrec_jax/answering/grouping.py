"""The fields that `evaluate --by` groups the cases by, and what the run directory keeps of the groups."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructrec_jax.data.data_config import Split
from instructrec_jax.data.rows import find_files, open_files
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import peek
from instructrec_jax.evaluation.report import GROUPS, KeptGroups, write_report
from instructrec_jax.evaluation.tables import Evaluation
from instructrec_jax.files import read_json, write_json
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run


def with_columns(run: Run, split: Split, names: Sequence[str]) -> Run:
    """The run with columns kept beside the examples of a split, which no task reads."""
    if not names:
        return run

    def keeping(source: SourceConfig) -> SourceConfig:
        kept = list(dict.fromkeys([*source.fields.keep, *names]))
        return replace(source, fields=replace(source.fields, keep=kept))

    sources: dict[str, Any] = {split: [keeping(each) for each in getattr(run.config.data, split)]}
    data = replace(run.config.data, **sources)
    return replace(run, data=RunData(replace(run.config, data=data)))


def columns_of(run: Run, split: Split) -> list[str]:
    """The columns of the first records of each file of a split."""
    files = [each.path for each in getattr(run.config.data, split) if each.kind == "file" and not each.streaming]
    return list(dict.fromkeys(column for path in files for column in peek(open_files(find_files(path)))[0]))


def keep_groups(run: Run, split: Split, out: Path) -> Path:
    """Writes groups.json from the evaluation.json in `out`, and the report, into the run directory (of a HuggingFace
    folder: into `out`); returns the report's path."""
    folder = run.path if run.trained else out
    evaluation: Evaluation = read_json(out / "evaluation.json", Evaluation)
    sources = [each.name or each.path for each in getattr(run.config.data, split)]
    groups = evaluation.get("groups") or []
    kept: KeptGroups = {"split": evaluation.get("split") or "", "sources": sources, "groups": groups}
    write_json(folder / GROUPS, kept)
    return write_report(folder)
