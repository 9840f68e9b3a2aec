"""A served language model: texts and conversations in, streams of answers out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.example import Example
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.service.engine import Engine
from instructrec_jax.service.stream import Stream


@dataclass(frozen=True)
class ServedWriter:
    """An opened language model and the engine that batches its answers."""

    model: LanguageModel
    engine: Engine[Any]

    def chat(self, example: Example) -> np.ndarray:
        """int32 [tokens] of a conversation or an instruction, rendered with the run's template."""
        return self.model.tokenize(example, "the conversation", raw=False)

    def text(self, prompt: str) -> np.ndarray:
        """int32 [tokens] of a text as it is."""
        return self.model.tokenize(prompt, "the prompt", raw=True)

    def submit(
        self, prompts: Sequence[np.ndarray], config: GenerationConfig, *, n: int, exact: bool, top: int
    ) -> list[Stream]:
        """n answers to each prompt, prompt by prompt; answer i of a prompt is the one that `generate` gives prompt i.

        Raises ValueError for a prompt that is too long, and QueueFull; then none of them is answered.
        """
        streams: list[Stream] = []
        try:
            for prompt in prompts:
                for number in range(n):
                    streams.append(self.engine.submit(prompt, config, number=number, exact=exact, top_logprobs=top))
        except Exception:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def token(self, number: int) -> str:
        """A token's text alone."""
        return str(self.model.tokenizer.decode([number]))

    def fitted(self, config: GenerationConfig, prompts: Sequence[np.ndarray], given: bool) -> GenerationConfig:
        """The settings with as many new tokens as there is room for, where the request did not say how many."""
        room = self.engine.capacity - max(map(len, prompts))
        return config if given or room < 1 else replace(config, max_new_tokens=min(config.max_new_tokens, room))
