"""Runs that draw: pictures of prompts (`generate --task image`)."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np

from instructrec_jax.answering.language_model import read_prompts
from instructrec_jax.backbones.folder import family_of, read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.data.example import Example
from instructrec_jax.data.listed import check_type
from instructrec_jax.data.media.drawing import grid_of, picture_file
from instructrec_jax.files import replacing
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.model import backbone_folder
from instructrec_jax.runs.run import Run, is_run
from instructrec_jax.tasks.generation.text_to_image import TextToImageTask

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
FIXED = ("max_new_tokens", "stop")  # an image has as many tokens as it has codes


def drawing_settings(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The overrides, for a HuggingFace folder behind the settings that open it to draw, in full length.

    A language model's length has room for the codes, too, so it is that of its own settings.
    """
    if is_run(path) or any(arg.partition("=")[0] == "--config_path" for arg in overrides):
        return [*overrides]
    network = read_config(backbone_folder(str(path)))
    longest = ["--data.max_length", str(input_limit(network))] if family_of(network).draws else []
    return ["--task.type", "text_to_image", *longest, *overrides]


class Drawer:
    """A text_to_image run, an export of one or a folder in dalle-mini's layout, opened to draw.

    Args:
      path: an opened run, or what `Run.open` opens, with overrides and step.

    Raises ValueError for a run with another task.
    """

    def __init__(self, path: str | Path | Run, overrides: Sequence[str] = (), *, step: int | None = None):
        check_type(path, "path", (str, Path, Run), "a run directory, or an opened run")
        if jax.process_count() > 1:
            raise ValueError("generation supports one process only: start it once, on the devices of one machine.")
        self.run = path if isinstance(path, Run) else Run.open(path, drawing_settings(path, overrides), step=step)
        if not isinstance(self.run.task, TextToImageTask):
            raise ValueError(f"{path} has the task {self.run.kind}, which draws no pictures: train text_to_image.")
        self.task: TextToImageTask = self.run.task

    def draw(self, prompts: Sequence[str | Example], config: GenerationConfig | None = None) -> list[np.ndarray]:
        """Values from 0 to 255, float64 [height, width, channels], of a picture for each prompt.

        Args:
          config: its max_new_tokens is not read; None: that of the run's evaluations.

        Raises ValueError, before anything is computed, for a prompt that is empty or too long.
        """
        settings = self.task.generation if config is None else self.task.drawing(config)
        return self.draw_tokens(self.tokens(prompts), settings)

    def tokens(self, prompts: Sequence[str | Example]) -> list[np.ndarray]:
        """int32 [tokens] of each prompt. Raises ValueError for one that is empty."""
        examples = [Example(instruction=each) if isinstance(each, str) else each for each in prompts]
        for number, example in enumerate(examples, 1):
            if isinstance(prompts[number - 1], str) and not example.instruction.strip():
                raise ValueError(f"prompt {number} is empty.")
        return [text.tokens for text in self.task.prompts(examples)]

    def draw_tokens(self, prompts: Sequence[np.ndarray], settings: GenerationConfig) -> list[np.ndarray]:
        """As `draw`, of prompts as tokens, with `TextToImageTask.drawing` settings."""
        written = self.run.predictor.write(prompts, settings)
        return self.task.codec.draw([self.task.codes_in(each.text) for each in written])


def draw_file(options: argparse.Namespace, args: Sequence[str], settings: Sequence[str]) -> None:
    """Draws what the options of `generate` say, into one picture.

    Args:
      args: the command line; what it does not name is that of the run's evaluations.
      settings: of train, that override the run's.
    """
    given = {arg[2:].partition("=")[0] for arg in args if arg.startswith("--")}
    check_options(options, given)
    prompts: list[str | Example] = [options.prompt]
    if options.input is not None:
        prompts = read_prompts(options.input).prompts
    drawer = Drawer(options.path, settings, step=options.step)
    names = {each.name for each in fields(GenerationConfig)} & given
    config = replace(drawer.task.generation, **{name: getattr(options, name) for name in names})
    pictures = drawer.draw([each for each in prompts for _ in range(options.samples)], config)
    data = picture_file(grid_of(pictures), FORMATS[options.out.suffix.lower()])
    with replacing(options.out) as file:
        file.write(data)
    print(f"written: {options.out}", file=sys.stderr)


def check_options(options: argparse.Namespace, given: set[str]) -> None:
    """Raises ValueError for options that drawing has no use for, and for an `--out` that is no new picture."""
    for name in ("image", "raw", "catalogue", "stream", *FIXED):
        if name in given:
            raise ValueError(f"--{name} is for texts: leave it out with --task image.")
    if options.out is None or options.out.suffix.lower() not in FORMATS:
        said = "is missing" if options.out is None else f"is {options.out}"
        raise ValueError(f"--out {said}, but --task image writes a picture: name a new file.png (or .jpg).")
    if options.samples < 1:
        raise ValueError(f"--samples is {options.samples}, but should be at least 1.")
