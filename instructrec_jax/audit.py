"""Audit labels and splits before training on them: `python -m instructrec_jax.audit SOURCE --out FOLDER`.

    audit my.yaml --out audited                     the data of a configuration, or of a run directory
    audit train.csv --out audited --data.test test.csv    a file of labeled texts
    audit my.yaml --plant 0.05                      how many of 5% flipped labels would be found

Finds wrong labels (confident learning from out-of-fold predictions, for task.type classification), equal texts with
different labels, duplicates and near-duplicates, and texts of the validation or test that are in the training data.
FOLDER/clean.jsonl has the examples of data.train that stay; findings.jsonl says what is wrong with the others.
"""

from pathlib import Path

from instructrec_jax.answering.arguments import audit_parser, new_file, parse_with_settings
from instructrec_jax.runs.config import Config, main_guard, parse, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_with_settings(audit_parser(__doc__), args))

from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.labeling.audit import Audit, AuditOptions, audit
from instructrec_jax.labeling.audit_report import shown, write_audit
from instructrec_jax.runs.run import is_run, run_settings


def main(args: list[str]) -> Audit:
    given, rest = parse_with_settings(audit_parser(__doc__), args)
    out = new_file(given.out)
    config = settings(given.source, rest)
    options = AuditOptions(given.features, given.rule, given.folds, given.similarity, given.plant)
    with heartbeat("auditing the data"):
        found = audit(config, options)
    if out is not None:
        write_audit(out, found, f"audit {given.source}")
    print(shown(found))
    if out is not None:
        print(
            f"written: {out / 'report.html'} and {out / 'clean.jsonl'}, for `train --data.train {out / 'clean.jsonl'}`"
        )
    return found


def settings(source: str, rest: list[str]) -> Config:
    """The settings of a YAML file, of a run directory, or of a classification of a file of labeled texts."""
    if Path(source).suffix in (".yaml", ".yml"):
        return parse(Config, ["--config_path", source, *rest])
    if is_run(source):
        return run_settings(source, rest)
    if not any(arg.partition("=")[0] == "--task.type" for arg in rest):
        rest = ["--task.type", "classification", *rest]
    return parse(Config, ["--data.train", source, *rest])


if __name__ == "__main__":
    main_guard(main)
