"""The command to try next with a run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.remote import is_url
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import ContrastiveConfig, SimilarityConfig
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.tasks.kinds import as_ranking

PYTHON = "python -m instructrec_jax."
LONGEST = 80  # characters of a text on a command line


def next_command(run: Run, cases: Sequence[Encoded] = ()) -> str:
    """A command that answers with the run, in terms of its own data, so that it works as it is printed.

    Args:
      cases: cases of the run's task, for an instruction or a history.
    """
    path = shlex.quote(str(run.path))
    if not run.trained:
        return f"{PYTHON}train --backbone.path {path} ... (with the same task and data)"
    ranking = as_ranking(run.task)
    if ranking is not None:
        return f"{PYTHON}recommend {path} {_request(ranking.catalogue, cases)}"
    retrieves = isinstance(run.config.task, ContrastiveConfig) and not run.config.task.labels
    if not run.task.has_answers or (retrieves and not any(e.example.candidates for e in cases)):
        return f"{PYTHON}export {path} --format hf --out exported"
    if run.config.task.answers_are_text and (asked := _prompt(cases)):
        return f"{PYTHON}generate {path} {asked}"
    if run.task.writes and run.task.learns_images and (text := _instruction(cases)):
        return f"{PYTHON}generate {path} --task image --prompt {shlex.quote(text)} --out picture.png"
    sources = (*run.config.data.test, *run.config.data.validation, *run.config.data.train)
    there = (source.path for source in sources if source.kind == "file")
    files = [path for path in there if is_url(path) or Path(path).is_file()]
    task = run.config.task
    has_own = not isinstance(task, SimilarityConfig) or task.labels or not task.negatives  # candidates to choose from
    out = "--out predictions.csv" if has_own else "--vectors --out vectors.parquet"
    return f"{PYTHON}predict {path} --input {shlex.quote(files[0]) if files else 'FILE'} {out}"


def _request(catalogue: Catalogue, cases: Sequence[Encoded]) -> str:
    """The options of a request: the history of a case, its instruction, or an item."""
    history = next((e.example.history for e in cases if e.example.history), ())
    if not history and (text := _instruction(cases)):
        return f"--instruction {shlex.quote(text)}"
    numbers = [catalogue.index[item] for item in history[-2:]] or [0]
    return " ".join(f"--history {shlex.quote(_name(catalogue, number))}" for number in numbers)


def _name(catalogue: Catalogue, number: int) -> str:
    """A title that names one item only, else the item's id."""
    title = catalogue.titles[number]
    is_clear = catalogue.titles.count(title) == 1 and not set(title) & set(";:\n")
    return title if is_clear and title.strip() else f"id:{catalogue.ids[number]}"


def _prompt(cases: Sequence[Encoded]) -> str:
    """The options that ask a case's instruction, with the files of its pictures; "" without such a case."""
    for e in cases:
        pictures = e.example.images
        if (text := _instruction([e])) and not e.example.sounds and all(picture.path for picture in pictures):
            files = [f"--image {shlex.quote(_from_here(picture.path))} " for picture in pictures]
            return f"{''.join(files)}--prompt {shlex.quote(text)}"
    return ""


def _from_here(path: str) -> str:
    """A path below the working directory without that directory."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _instruction(cases: Sequence[Encoded]) -> str:
    """The first instruction that is short and all that its example says, beside pictures; "" without one."""
    examples = (e.example for e in cases)
    alone = (e.instruction for e in examples if not e.input and not e.messages)
    return next((text for text in alone if text.strip() and len(text) <= LONGEST and text.isprintable()), "")
