"""Pictures of prompts in groups of one size, so that every shape is compiled before the first request."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.answering.drawing import Drawer
from instructrec_jax.data.media.drawing import picture_file
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.run import Run


@dataclass(frozen=True)
class Prompt:
    """What to draw.

    Attributes:
      count: pictures, which differ by their place.
      seed, temperature, guidance_scale: in place of the run's; None: these.
    """

    text: str
    count: int = 1
    seed: int | None = None
    temperature: float | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Drawn:
    """The pictures of a prompt as PNG files, and the number of its tokens and of the codes that were written."""

    pictures: list[bytes]
    prompt_tokens: int
    codes: int


class Drawing:
    """`Prompt` -> `Drawn`, as `generate --task image --samples N`; each request by itself, so nobody changes it.

    Args:
      most: pictures of a request. Each is computed with as many rows.
    """

    def __init__(self, run: Run, most: int):
        self.drawer, self.most = Drawer(run), most
        self.longest = run.config.data.max_length
        codec = self.drawer.task.codec
        self.codes, self.side = codec.spec.codes, codec.spec.image_size

    def answer(self, asked: Sequence[Prompt]) -> list[Drawn | Exception]:
        return [self._answer(each) for each in asked]

    def _answer(self, asked: Prompt) -> Drawn | Exception:
        try:
            settings = self._settings(asked)
            (tokens,) = self.drawer.tokens([asked.text])
            if len(tokens) > self.longest:
                message = f"the prompt has {len(tokens):,} tokens, but the run reads at most {self.longest:,}"
                raise ValueError(f"{message} (data.max_length): make it shorter.")
        except ValueError as error:
            return error
        values = self.drawer.draw_tokens([tokens] * self.most, settings)[: asked.count]
        return Drawn([picture_file(each) for each in values], len(tokens), asked.count * self.codes)

    def _settings(self, asked: Prompt) -> GenerationConfig:
        """Raises ValueError for settings that no program was compiled for."""
        own = self.drawer.task.generation
        given = {name: getattr(asked, name) for name in ("seed", "temperature", "guidance_scale")}
        settings = replace(own, batch_size=self.most, **{n: value for n, value in given.items() if value is not None})
        for name, off in (("temperature", 0), ("guidance_scale", 1)):
            if (getattr(settings, name) == off) != (getattr(own, name) == off):
                only = f"only {off}" if getattr(own, name) == off else f"only values above {off}"
                raise ValueError(f"{name} is {getattr(settings, name):g}, but this run is served with {only}.")
        return settings

    def compile(self) -> None:
        """Draws once for each length of rows that prompts have."""
        settings = replace(self.drawer.task.generation, batch_size=self.most)
        (tokens,) = self.drawer.tokens(["a"])
        below_powers = [2**power - 1 for power in range(1, self.longest.bit_length() + 1)]
        for length in sorted({min(each, self.longest) for each in (*below_powers, self.longest)}):
            self.drawer.draw_tokens([np.resize(tokens, length)] * self.most, settings)
