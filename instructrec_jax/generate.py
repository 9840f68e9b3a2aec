"""Write answers with a language model: `python -m instructrec_jax.generate RUN_OR_HF_FOLDER --prompt "..."`.

    generate RUN --prompt TEXT               an answer on the terminal, as it is written
    generate HF_FOLDER --input FILE --out FILE   one answer a record: {"prompt": ...}, or instruction, input, messages

Prompts are written as in training, by the run's template; --raw takes them as they are. Without --temperature the
likeliest token is taken each time.
"""

import argparse
import dataclasses
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from draccus.wrappers import docstring

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.prompts import tokenise_pieces
from instructrec_jax.data.rows import open_rows
from instructrec_jax.distributed.mesh import fitting_mesh, make_mesh
from instructrec_jax.files import write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig, recommendations
from instructrec_jax.inference.writer import Generated, open_writer
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.ranking.evaluation import answer_errors
from instructrec_jax.runs import assembly as assemble
from instructrec_jax.runs.config import Config, load, main_guard, parse, setting_names, unknown_key
from instructrec_jax.tasks.generation.language_model import LanguageModelConfig, LanguageModelTask
from instructrec_jax.training.state import Tree


class LanguageModel:
    """A run directory or a HuggingFace folder with a language model, opened to generate.

    Args:
      path: of the run directory or folder (or a hub id).
      settings: mesh, dtype, template ...; None: those of the run, or the defaults.
      step: which checkpoint of a run; None: the best.

    Raises:
      ValueError: the run has another task, or the folder no language model; or a setting of generation_config.json
        that is not implemented.
    """

    def __init__(self, path: str | Path, settings: Config | None = None, *, step: int | None = None):
        if jax.process_count() > 1:
            raise ValueError("generation runs in one process: start it once, on the devices of one machine.")
        is_run = (Path(path) / "config.yaml").is_file()
        if settings is None:
            settings = load(Path(path) / "config.yaml") if is_run else Config(task=LanguageModelConfig())
            settings = replace(settings, mesh=fitting_mesh(settings.mesh))
        folder = Path(path) / "backbone" if is_run else assemble.backbone_folder(str(path))
        if not isinstance(settings.task, LanguageModelConfig):
            raise ValueError(f"{path} was tuned for another task; only task.type language_model writes text.")
        # what a text may have is a matter of training; here prompt and answer share what the network can read
        limit = input_limit(read_config(folder))
        settings = replace(settings, data=replace(settings.data, max_length=limit))
        task: Any = assemble.open_task(settings, folder)
        self.task: LanguageModelTask = task
        self.tokenizer = task.context.tokenizer
        mesh = make_mesh(settings.mesh)
        if is_run:
            model = assemble.restored_model(settings, task, Path(path), mesh, step)
        else:
            model = assemble.load_model(settings, task, folder, mesh)
            if any(path.startswith("table") for path in model.source.report.initialised):
                raise ValueError(f"{folder} has no language-model head: what it would write is noise.")
        self.params = in_dtype(model.params, assemble.compute_dtype(settings))
        self.writer = open_writer(task, model.graphdef, mesh)
        self.recommended = recommendations(folder)

    def tokenise(self, prompt: str | Example, name: str, *, raw: bool) -> Any:
        """int32 [tokens] of a prompt; `name` says in errors whose."""
        if not raw:
            example = prompt if isinstance(prompt, Example) else Example(instruction=prompt)
            return self.task.prompts([replace(example, id=name)])[0]
        if not isinstance(prompt, str):
            raise ValueError(f'{name}: a prompt that is taken as it is must be a text: {{"prompt": "..."}}.')
        if self.writer.decoder.encoder_decoder:
            return self.tokenizer([prompt], return_tensors="np")["input_ids"][0]
        return tokenise_pieces([[(prompt, False)]], self.tokenizer)[0].ids

    def generate(
        self,
        prompts: Sequence[str | Example],
        config: GenerationConfig | None = None,
        *,
        raw: bool = False,
        names: Sequence[str] | None = None,
        show: Callable[[str], None] | None = None,
        progress: bool = False,
    ) -> list[Generated]:
        """Answers prompts, in their order.

        Args:
          prompts: instructions, or whole examples (whose answers are not looked at).
          raw: take texts as they are, without the template.
          names: what to call each prompt in an error.
          show: called with the answer to a single prompt, piece by piece: whole characters, no stop texts.

        Raises:
          ValueError: before anything runs, for a prompt that is empty, or too long beside `max_new_tokens`.
        """
        config = config or GenerationConfig()
        names = names or [f"prompt {number + 1}" for number in range(len(prompts))]
        if show is not None and (len(prompts) > 1 or config.beams > 1):
            raise ValueError("an answer can be shown while it is written for a single prompt, and without beams.")
        for prompt, name in zip(prompts, names, strict=True):
            if isinstance(prompt, str) and not prompt.strip():
                raise ValueError(f"{name} is empty: there is nothing to answer.")
        tokens = [self.tokenise(prompt, name, raw=raw) for prompt, name in zip(prompts, names, strict=True)]
        return self.writer.write(self.params, tokens, names, config, show=show, progress=progress)


def generate(
    path: str | Path,
    prompts: Sequence[str | Example],
    config: GenerationConfig | None = None,
    *,
    settings: Config | None = None,
    step: int | None = None,
    raw: bool = False,
) -> list[Generated]:
    """Answers prompts with a run directory or HuggingFace folder; see `LanguageModel`, which opens it only once."""
    return LanguageModel(path, settings, step=step).generate(prompts, config, raw=raw)


def in_dtype(params: Tree, dtype: Any) -> Tree:
    """Kernels and tables in the dtype of the activations, to which every use casts them: half the memory traffic."""

    def cast(path: Any, x: jax.Array) -> jax.Array:
        names = [str(getattr(key, "key", key)) for key in path]
        is_cast = names[-1] == "kernel" or names[-2:] in (["word_embeddings", "table"], ["head", "table"])
        return x.astype(dtype) if is_cast and jax.numpy.issubdtype(x.dtype, jax.numpy.floating) else x

    return jax.tree_util.tree_map_with_path(cast, params)


# ---------------------------------------------------------------- the command line


def read_prompts(file: Path) -> tuple[list[dict[str, Any]], list[str | Example], list[str]]:
    """The records of a file, their prompts, and what to call them. An error names file and line."""
    rows = open_rows(str(file))
    records, prompts, names = [], [], []
    for index in range(len(rows)):
        where = rows.where(index)
        try:
            record = rows.row(index)
            prompts.append(_prompt(record))
        except BadExample as error:
            error.where = error.where or where
            raise
        records.append(record)
        names.append(where)
    return records, prompts, names


def _prompt(record: Mapping[str, Any]) -> str | Example:
    if "prompt" not in record:
        return Example.from_record(record)
    if not isinstance(record["prompt"], str) or not record["prompt"].strip():
        raise BadExample("prompt", "empty text", f"expected a text, found {record['prompt']!r}.")
    return record["prompt"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option a field of GenerationConfig."""
    hints = typing.get_type_hints(GenerationConfig)
    for entry in dataclasses.fields(GenerationConfig):
        text = docstring.get_attribute_docstring(GenerationConfig, entry.name).comment_inline
        kind = hints[entry.name]
        if entry.name == "stop":
            parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help=f"{text} (repeatable)")
            continue
        kind = next(k for k in (*typing.get_args(kind), kind) if k in (int, float))
        shown = "" if entry.default is None else f" (default: {entry.default})"
        parser.add_argument(f"--{entry.name}", type=kind, default=entry.default, metavar="N", help=text + shown)


def read_settings(path: Path, rest: list[str], own: set[str]) -> Config | None:
    """Settings of the run (or the defaults), changed by the arguments left over; None where there are none."""
    known = set(setting_names(Config))
    for arg in rest:
        name = arg[2:].split("=")[0]
        if arg.startswith("--") and name not in known | {"config_path"}:
            raise ValueError(unknown_key(name, known | own))
    if not rest:
        return None
    if (path / "config.yaml").is_file():
        settings: Config = parse(Config, rest, default=path / "config.yaml")
    else:
        has_file = any(arg.split("=")[0] == "--config_path" for arg in rest)
        settings = parse(Config, rest if has_file else ["--task.type", "language_model", *rest], default=None)
    if any(arg.startswith("--mesh") for arg in rest):
        return settings
    return replace(settings, mesh=fitting_mesh(settings.mesh))


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m instructrec_jax.generate",
        description=__doc__.split("\n")[0],
        epilog="Settings of train can follow: --task.template chatml, --backbone.dtype bfloat16, --mesh.tensor 2.",
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, help="run directory, or HuggingFace folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="what to answer")
    source.add_argument("--input", type=Path, help='file of records with "prompt", or instruction, input, messages')
    parser.add_argument("--out", type=Path, help='where the records go, with "generated" and "finish"; default: stdout')
    parser.add_argument(
        "--catalogue", type=Path, help="prepared folder: tells how many answers name no item, one twice, or a seen one"
    )
    parser.add_argument("--raw", action="store_true", help="take prompts as they are, without a template")
    parser.add_argument("--step", type=int, help="which checkpoint of a run; default: the best")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="show the answer to --prompt while it is written; default: on a terminal",
    )
    add_options(parser)
    options, rest = parser.parse_known_args(args)
    names = {entry.name for entry in dataclasses.fields(GenerationConfig)}
    values = {name: getattr(options, name) for name in names} | {"stop": tuple(options.stop)}
    config = GenerationConfig(**values)
    own = names | {"prompt", "input", "out", "catalogue", "raw", "step", "stream"}
    settings = read_settings(options.path, rest, own)
    if options.out is not None and options.out.exists():
        raise ValueError(f"{options.out} exists already: choose another --out.")
    catalogue = None if options.catalogue is None else Catalogue.load(options.catalogue)
    if options.prompt is not None:
        records, prompts, where = [{"prompt": options.prompt}], [options.prompt], ["the prompt"]
    else:
        records, prompts, where = read_prompts(options.input)
    on_terminal = options.prompt is not None and options.out is None and sys.stdout.isatty() and config.beams == 1
    streams = on_terminal if options.stream is None else options.stream
    model = LanguageModel(options.path, settings, step=options.step)
    if model.recommended:
        wishes = ", ".join(f"{name} {value}" for name, value in model.recommended.items())
        print(f"note: generation_config.json recommends {wishes}; only what the options say is done.", file=sys.stderr)

    def show(piece: str) -> None:
        print(piece, end="", flush=True)

    answers = model.generate(
        prompts, config, raw=options.raw, names=where, show=show if streams else None, progress=True
    )
    if streams:
        print()
    written = [
        record | {"generated": answer.text, "finish": answer.finish}
        for record, answer in zip(records, answers, strict=True)
    ]
    if catalogue is not None:
        shares = answer_shares(catalogue, written)
        told = ", ".join(f"{what} {share:.1%}" for what, share in shares.items())
        print(f"of the items named in {len(written):,} answers: {told}", file=sys.stderr)
    if options.out is not None:
        write_jsonl(options.out, written)
        print(f"written: {options.out}", file=sys.stderr)
    elif options.input is not None:
        for record in written:
            print(json.dumps(record, ensure_ascii=False))
    elif not streams:
        print(answers[0].text)


def answer_shares(catalogue: Catalogue, written: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of the items that answers name (by title or id; several on lines, or between semicolons) that are invalid,
    duplicate or already seen (in a record's `history` of ids); see `ranking.evaluation.answer_errors`."""
    names: dict[str, list[int]] = {}
    for number, (item, title) in enumerate(zip(catalogue.ids, catalogue.titles, strict=True)):
        names.setdefault(title, []).append(number)
        names.setdefault(item, []).append(number)
    listed = [[part for part in re.split(r"[\n;]", record["generated"]) if part.strip()] for record in written]
    histories = [catalogue.numbers(record.get("history", ())) for record in written]
    return answer_errors(listed, names, histories)


if __name__ == "__main__":
    main_guard(main)
