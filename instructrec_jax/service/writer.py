"""A served language model: texts and conversations in, streams of answers out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.service.engine import Engine
from instructrec_jax.service.stream import Stream


@dataclass(frozen=True)
class ServedWriter:
    """An opened language model and the engine that batches its answers."""

    model: LanguageModel
    engine: Engine[Any]

    def chat(self, example: Example) -> Text:
        """The tokens and pictures of a conversation or an instruction, rendered with the run's template.

        Raises ValueError for a picture that cannot be read.
        """
        text = self.model.read(example, "the conversation", raw=False)
        if text.images is not None:
            for number, picture in enumerate(text.images.pictures, 1):
                try:
                    text.images.read(picture)
                except ValueError as error:
                    raise ValueError(f"picture {number} of {len(text.images.pictures)}: {error}") from error
        return text

    def text(self, prompt: str) -> Text:
        """The tokens of a text as it is."""
        return self.model.read(prompt, "the prompt", raw=True)

    def submit(
        self, prompts: Sequence[Text], config: GenerationConfig, *, n: int, exact: bool, top: int
    ) -> list[Stream]:
        """n answers to each prompt, prompt by prompt; answer i of a prompt is the one that `generate` gives prompt i.

        Raises ValueError for a prompt that is too long, and QueueFull; then none of them is answered.
        """
        streams: list[Stream] = []
        try:
            for prompt in prompts:
                for number in range(n):
                    stream = self.engine.submit(
                        prompt.tokens, config, number=number, exact=exact, top_logprobs=top, images=prompt.images
                    )
                    streams.append(stream)
        except Exception:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def token(self, number: int) -> str:
        """A token's text alone."""
        return str(self.model.tokenizer.decode([number]))

    def fitted(self, config: GenerationConfig, prompts: Sequence[Text], given: bool) -> GenerationConfig:
        """The settings with as many new tokens as there is room for, where the request did not say how many."""
        room = self.engine.capacity - max(len(prompt.tokens) for prompt in prompts)
        return config if given or room < 1 else replace(config, max_new_tokens=min(config.max_new_tokens, room))
