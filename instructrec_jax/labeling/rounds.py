"""Rounds of labeling with a run: the pool, what the run believes of it, and the settings of the next training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import xxhash

from instructrec_jax.answering.records import read_records
from instructrec_jax.data.data_config import Split
from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import normalized
from instructrec_jax.data.prompts import render
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import write_jsonl
from instructrec_jax.labeling.questions import Asker, Questions
from instructrec_jax.labeling.session import Session
from instructrec_jax.labeling.strategies import NEEDS, Beliefs, Strategy, select
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.unlabeled import case_key
from instructrec_jax.tasks.text.text_config import ClassificationConfig

DRAWS = 8  # of Monte Carlo dropout, for bald


@dataclass(frozen=True)
class Pool:
    """The texts to label.

    Attributes:
      examples: with some label, which nothing reads.
      texts: as people read them.
      fingerprint: changes with the texts.
    """

    examples: list[Example]
    texts: list[str]
    fingerprint: str


def check_task(run: Run) -> None:
    """Raises ValueError for a run of another task than classification."""
    if not isinstance(run.config.task, ClassificationConfig):
        raise ValueError(
            f"{run.path} is of task.type {run.kind}, but label asks for one label of a text: classification."
        )


def read_pool(run: Run, file: str) -> Pool:
    """The records of a file, with the columns of the run's data; a target among them is ignored.

    Raises BadExample for one that the run cannot read, ValueError where there are none, for pictures, and for a text
    that the run is measured on.
    """
    asker, examples = run.asker(many=True), []
    for where, record in read_records(file):
        if isinstance(record, Exception):
            raise record
        examples.append(asker.example(record, where))
    if media := next((example for example in examples if example.media), None):
        raise ValueError(f"{media.where}: label shows texts, but this record has pictures or sounds.")
    examples = _without_cases(run, examples)
    if not examples:
        raise ValueError(f"the pool is empty: {file} has no records to label.")
    texts = [render(example) for example in examples]
    return Pool(examples, texts, xxhash.xxh3_128("\x00".join(texts).encode(errors="replace")).hexdigest())


def _without_cases(run: Run, examples: list[Example]) -> list[Example]:
    """The examples. Raises ValueError for one that is a case of the run's validation or test, which training would
    see; with data.on_bad_example skip, such examples are left out instead."""
    data, splits = RunData(run.config), get_args(Split)[1:]
    listed = [split for split in splits if getattr(run.config.data, split)]
    known = {case_key(case): split for split in listed for case in data.examples(split)}
    found = [example for example in examples if case_key(example) in known]
    if found and run.config.data.on_bad_example != "skip":
        raise ValueError(
            f"{len(found):,} texts of the pool are cases of data.validation or data.test, on which a run that learns "
            f"from them cannot be measured; {found[0].where}: the text is in data.{known[case_key(found[0])]}. Remove "
            "them, or set data.on_bad_example: skip to leave them out."
        )
    return [example for example in examples if case_key(example) not in known]


def left_to_ask(session: Session, pool: Pool) -> list[int]:
    """The texts that nobody has answered, in order; of equal ones the first."""
    known = {normalized(pool.texts[number]) for number in session.done()}
    first: dict[str, int] = {}
    for number, text in enumerate(pool.texts):
        first.setdefault(normalized(text), number)
    return [number for text, number in first.items() if text not in known]


def beliefs_of(
    run: Run, strategy: Strategy, pool: Pool, left: Sequence[int], known: Sequence[int], seed: int
) -> Beliefs:
    """What a run believes of the texts `left` of a pool; what the strategy does not need is left out, but `shares`.

    Args:
      known: the labeled texts.
    """
    encoded = run.asker(many=True).encode([pool.examples[number] for number in left])[0]
    outputs = [output for _, output in run.full_predictor.over(encoded)]
    beliefs = Beliefs(len(left), probabilities(np.stack(outputs)))
    if "draws" in NEEDS[strategy]:
        texts = [each.text for each in encoded]
        drawn = np.stack([np.stack(run.full_predictor.draw(texts, seed + draw)) for draw in range(DRAWS)])
        if not (drawn == drawn[0]).all():  # else the network has no dropout
            beliefs = replace(beliefs, draws=probabilities(drawn))
    if "vectors" in NEEDS[strategy]:
        beliefs = replace(beliefs, vectors=run.encode([pool.texts[number] for number in left]))
    if "known" in NEEDS[strategy]:
        width = run.encode([pool.texts[number] for number in known]) if len(known) else np.empty((0, 1), np.float32)
        beliefs = replace(beliefs, known=width)
    return beliefs


def ask_round(
    session: Session, run: Run, pool: Pool, number: int, how: tuple[Strategy, int], who: str, asker: Asker
) -> bool:
    """Chooses the texts of a round, unless an earlier process chose them, and asks for them; False: the person quits.

    Args:
      number: of the round, from 1.
      how: the strategy, and the number of texts.
    """
    if len(session.rounds) < number:
        strategy, count = how
        left = left_to_ask(session, pool)
        beliefs = beliefs_of(run, strategy, pool, left, sorted(session.taken()), number)
        session.ask([left[place] for place in select(strategy, beliefs, count, number)], strategy, str(run.path))
    numbers = session.rounds[number - 1]["numbers"]
    shares = beliefs_of(run, "random", pool, numbers, [], number).shares
    return asker.ask(Questions(session, numbers, pool.texts, who, shares))


def next_settings(config: Config, start: Path, run_dir: Path, pool: Pool, taken: Mapping[int, str]) -> Config:
    """The settings of a training that starts from a run's parameters, on its own data and the new labels.

    Args:
      config: of the first run.
      start: run directory to start from.
      run_dir: of the new run; the new labels are written to RUN_DIR.jsonl.
      taken: number of a text -> its label.
    """
    file = run_dir.with_name(f"{run_dir.name}.jsonl")
    if not file.exists():  # a training that was interrupted resumes with the labels that it began with
        rows = [replace(pool.examples[number], output=label, id=f"pool-{number}") for number, label in taken.items()]
        write_jsonl(file, (example.to_record() for example in rows))
    sources = [*config.data.train, SourceConfig(path=str(file))]
    data = replace(config.data, train=sources)
    return replace(config, run_dir=str(run_dir), init_from=str(start), overwrite=False, data=data)
