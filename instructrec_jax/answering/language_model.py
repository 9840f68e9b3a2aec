"""A language model opened to generate, and its files of prompts and answers."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp

from instructrec_jax.answering.prediction_files import pictures_of
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import BadExample, Example, is_blank
from instructrec_jax.data.listed import check_type, listed
from instructrec_jax.data.media.image_tokens import ImageTokens
from instructrec_jax.data.media.picture import Picture, picture_of
from instructrec_jax.data.media.picture_references import row_pictures
from instructrec_jax.data.media.pictures import read_preprocessing
from instructrec_jax.data.prompts import tokenize_pieces
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.unread import MEANING
from instructrec_jax.inference.generation_config import GenerationConfig, recommendations
from instructrec_jax.inference.writer import Generated, open_writer
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.ranking.evaluation import answer_errors
from instructrec_jax.runs.bucket import local_run
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import backbone_folder, compute_dtype
from instructrec_jax.runs.run import Run, is_run, run_settings
from instructrec_jax.tasks.generation.language_model import LanguageModelTask
from instructrec_jax.tasks.images import with_pictures
from instructrec_jax.tasks.kinds import as_language_model
from instructrec_jax.tasks.task_config import TaskConfig
from instructrec_jax.training.state import Tree


def language_model_settings(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of a run, or of a language model for a HuggingFace folder, with overrides."""
    has_file = any(arg.split("=")[0] == "--config_path" for arg in overrides)
    chosen = [] if is_run(path) or has_file else ["--task.type", "language_model"]
    return run_settings(path, [*chosen, *overrides], default=None)


PICTURES = ("image", "images")  # columns of a record


class LanguageModel:
    """A language model from a run directory or a HuggingFace folder, opened to generate.

    Args:
      path: the run directory, folder or hub id.
      overrides: settings of train as on the command line (mesh, dtype, template ...), or a whole Config.
      step: step of a run's checkpoint; None: the best.

    Raises:
      ValueError: the run has another task, the folder has no language model, or generation_config.json has a setting
        that is not implemented.
    """

    def __init__(self, path: str | Path, overrides: Sequence[str] | Config = (), *, step: int | None = None):
        check_type(path, "path", (str, Path), "a run directory, a HuggingFace folder or a hub id")
        if jax.process_count() > 1:
            raise ValueError("generation supports one process only: start it once, on the devices of one machine.")
        path = local_run(path)
        config = overrides if isinstance(overrides, Config) else language_model_settings(path, overrides)
        if not config.task.answers_are_text:
            texts = [name for name, kind in sorted(TaskConfig.get_known_choices().items()) if kind.answers_are_text]
            raise ValueError(
                f"{path} has the task {config.task.name}, which does not generate text: predict answers with it. Tasks "
                f"that generate text: {', '.join(texts)}."
            )
        folder = path / "backbone" if is_run(path) else backbone_folder(str(path))
        # data.max_length limits training texts; here prompt and answer share the network's full context
        network = read_config(folder)
        limit = input_limit(network)
        self.run = Run.open(path, replace(config, data=replace(config.data, max_length=limit)), step=step)
        task = as_language_model(self.run.task)
        assert task is not None  # since its answers are text
        self.task: LanguageModelTask = task
        self.tokenizer = task.context.tokenizer
        model = self.run.model
        if not self.run.trained and any(name.startswith("table") for name in model.source.report.initialized):
            raise ValueError(f"{folder} has no language-model head: name a checkpoint of a language model.")
        self.params = in_dtype(model.params, compute_dtype(config))
        self.folder = folder
        self.writer = open_writer(task, model.graphdef, self.run.mesh)
        self.recommended = recommendations(folder)

    def read(self, prompt: str | Example, name: str, *, raw: bool, pictures: Sequence[Picture] = ()) -> Text:
        """The tokens of a prompt, with its pictures; errors call it `name`.

        Args:
          pictures: of a prompt that is a text.
        """
        how = self.task.context.image_tokens
        given = prompt.media if isinstance(prompt, Example) else pictures
        if given and how is None:
            ImageTokens.of(read_config(self.folder), self.tokenizer)  # raises where the network reads none
            read_preprocessing(self.folder)  # raises, too
        if isinstance(prompt, Example) and prompt.sounds:
            raise ValueError(f"{name}: it has a sound, but prompts have words and pictures: transcribe with predict.")
        if not raw:
            example = prompt if isinstance(prompt, Example) else Example(instruction=prompt, images=tuple(pictures))
            return self.task.prompts([replace(example, id=name)])[0]
        if not isinstance(prompt, str):
            raise ValueError(f'{name}: a raw prompt must be a text: {{"prompt": "..."}}.')
        if self.writer.decoder.encoder_decoder:
            return Text(self.tokenizer([prompt], return_tensors="np")["input_ids"][0])
        text = prompt if how is None else how.text(prompt, len(pictures))
        ids = tokenize_pieces([[(text, False)]], self.tokenizer, raw=True)[0].ids
        if how is None:
            return Text(ids)
        example = Example(instruction=prompt, images=tuple(pictures), id=name)
        return with_pictures(Text(how.expand(ids, len(pictures))[0]), example, self.task.context)

    def generate(
        self,
        prompts: str | Example | Sequence[str | Example],
        config: GenerationConfig | None = None,
        *,
        raw: bool = False,
        names: Sequence[str] | None = None,
        show: Callable[[str], None] | None = None,
        progress: bool = False,
        images: Sequence[Sequence[Path | Picture]] | None = None,
    ) -> list[Generated]:
        """Answers prompts, in their order.

        Args:
          prompts: an instruction, a whole example, whose output is ignored, or a list of these.
          images: the pictures (or their files) of each prompt, which is a text; they stand where it has
            `ImageTokens.marker`, or come first.
          raw: do not apply the template.
          names: names of the prompts for errors.
          show: called with successive pieces of the answer to a single prompt: whole characters, no stop texts.

        Raises:
          ValueError: before generation, for a prompt that is empty, or too long together with `max_new_tokens`; for
            images that the network does not read, or that the prompt has another number of.
        """
        config = GenerationConfig() if config is None else config
        check_type(config, "config", (GenerationConfig,), "a GenerationConfig")
        wanted = "a text, an `Example` (which may hold messages), or a list of these"
        prompts = cast(list[str | Example], listed(prompts, "prompts", (str, Example), wanted))
        names = names or [f"prompt {number + 1}" for number in range(len(prompts))]
        if show is not None and (len(prompts) > 1 or config.beams > 1):
            raise ValueError("streaming (show) works for a single prompt without beams only.")
        for prompt, name in zip(prompts, names, strict=True):
            if isinstance(prompt, str) and not prompt.strip():
                raise ValueError(f"{name} is empty.")
        texts = []
        for number, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
            files = () if images is None else images[number]
            if files and not isinstance(prompt, str):
                raise ValueError(f"{name}: images are for prompts that are texts.")
            pictures = [each if isinstance(each, Picture) else picture_of(each) for each in files]
            texts.append(self.read(prompt, name, raw=raw, pictures=pictures))
        ids = [text.tokens for text in texts]
        return self.writer.write(
            self.params, ids, names, config, show=show, progress=progress, images=self.task.seen(texts)
        )


def in_dtype(params: Tree, dtype: jnp.dtype) -> Tree:
    """Kernels and tables in the activations' dtype, to which every use casts them: it halves the memory traffic."""

    def cast(path: Sequence[object], x: jax.Array) -> jax.Array:
        names = [str(getattr(key, "key", key)) for key in path]
        is_cast = names[-1] == "kernel" or names[-2:] in (["word_embeddings", "table"], ["head", "table"])
        return x.astype(dtype) if is_cast and jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree_util.tree_map_with_path(cast, params)


# ---------------------------------------------------------------- records


@dataclass(frozen=True)
class Prompts:
    """The records of a file, their prompts, and their names for errors.

    Attributes:
      pictures: of the prompts that are texts.
    """

    records: list[dict[str, object]]
    prompts: list[str | Example]
    names: list[str]
    pictures: list[tuple[Picture, ...]]


def read_prompts(file: Path) -> Prompts:
    """The prompts of a file; columns `image` and `images` name pictures beside it. An error names file and line."""
    rows, folders = open_rows(str(file)), pictures_of(file, "")
    found = Prompts([], [], [], [])
    for index in range(len(rows)):
        where = rows.where(index)
        try:
            record = rows.row(index)
            columns = {name: record.get(name) for name in PICTURES}
            messages, pictures = row_pictures(columns, record.get("messages"), folders.of(where))
            own = {name: value for name, value in record.items() if name not in PICTURES}
            if messages is not None:
                own["messages"] = messages
            prompt = _prompt(own)
        except BadExample as error:
            error.where = error.where or where
            raise
        found.records.append(record)
        found.prompts.append(replace(prompt, images=pictures) if isinstance(prompt, Example) and pictures else prompt)
        found.pictures.append(() if isinstance(prompt, Example) else pictures)
        found.names.append(where)
    return found


def without_bytes(record: Mapping[str, object]) -> dict[str, object]:
    """The record without pictures that it holds as bytes, as those of a Parquet file are: JSON has no bytes."""

    def has_bytes(value: object) -> bool:
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        return isinstance(value, bytes) or any(map(has_bytes, parts))

    return {name: value for name, value in record.items() if not has_bytes(value)}


def _prompt(record: Mapping[str, object]) -> str | Example:
    if "prompt" not in record:
        return Example.from_record(record)
    prompt = record["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadExample("prompt", "empty text", f"expected a text, found {prompt!r}.")
    history = record.get("history")
    has_ids = isinstance(history, list) and all(isinstance(item, str) for item in history)  # what --catalogue reads
    unread = ("instruction", "input", "messages", *(() if has_ids else ("history",)), *sorted(MEANING))
    for name in unread:
        if not is_blank(record.get(name)):
            detail = f"a record with a prompt cannot have {name}: remove it, or write both as instruction or messages."
            raise BadExample(name, "unread field", detail)
    return prompt


def answer_shares(catalogue: Catalogue, written: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Shares of invalid, duplicate and seen items in answers; see `ranking.evaluation.answer_errors`.

    Answers name items by title or id, separated by newlines or semicolons. Seen: in a record's `history` of ids.
    """
    names: dict[str, list[int]] = {}
    for number, (item, title) in enumerate(zip(catalogue.ids, catalogue.titles, strict=True)):
        names.setdefault(title, []).append(number)
        names.setdefault(item, []).append(number)
    listed = [[part for part in re.split(r"[\n;]", str(record["generated"])) if part.strip()] for record in written]
    histories = [catalogue.numbers(_history(record)) for record in written]
    return answer_errors(listed, names, histories)


def _history(record: Mapping[str, object]) -> list[str]:
    value = record.get("history")
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
