"""What `explain` explains of a language model: the log-probability of each token that it writes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import jax
import numpy as np

from instructrec_jax.adapters import losses
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.batch import Batch, BatchTexts, Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import MARK
from instructrec_jax.data.prompts import conversation, question
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.tasks.base import Network
from instructrec_jax.tasks.encoded import Encoded
from instructrec_jax.tasks.objective import Choice, NothingToExplain, Objective, Reading, refuse_contrast
from instructrec_jax.tasks.prediction import Predict

EXPLAINED = 16  # written tokens at most


class Writing(Protocol):
    """What is read of a language model's task."""

    tokenizer: Any  # of transformers; Any: transformers is untyped
    config: Any
    generation: GenerationConfig

    def encode(self, examples: Sequence[Example]) -> Sequence[Encoded]: ...

    def asked(self, encoded: Sequence[Encoded]) -> list[Text]: ...

    def seen(self, prompts: Sequence[Text]) -> Sequence[RowImages] | None: ...

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts: ...

    def trained_form(self, example: Example) -> Example: ...

    def prompt_of(self, example: Example) -> str: ...


def written_objectives(task: Writing, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
    """The log-probability (nats) of each of the first `EXPLAINED` written tokens, given the prompt and those before.

    Raises ValueError for a contrast, a run that trains on prompts, too, and a `choice.word` that is no such token.
    """
    refuse_contrast(choice, "a language model writes tokens")
    if task.config.train_on == "all":
        raise ValueError("explain needs the written tokens alone: add --task.train_on completions.")
    settings = replace(task.generation, max_new_tokens=EXPLAINED)
    (asked,) = task.asked([encoded])
    (said,) = predict.write([asked.tokens], settings, task.seen([asked]))
    if not said.text.strip():
        raise NothingToExplain("the network writes nothing for this prompt, so there is nothing to explain.")

    def answered(e: Encoded) -> Encoded:
        return task.encode([replace(e.example, output=said.text.strip())])[-1]

    target = answered(encoded).target
    names = [task.tokenizer.decode([token]) for token in target.labels[target.supervised > 0]]
    names = names[: len(names) - (said.finish == "length")]  # the end token was not written
    places = [n for n, name in enumerate(names) if choice.word is None or name.strip() == choice.word.strip()]
    if not places:
        raise ValueError(f"--word is {choice.word!r}, but the network writes the tokens {names}.")
    return [_of_token(task, names[place], place, answered) for place in places]


def _of_token(task: Writing, name: str, place: int, answered: Callable[[Encoded], Encoded]) -> Objective:
    def weights(e: Encoded) -> np.ndarray | None:
        target = answered(e).target
        supervised = np.flatnonzero(target.supervised)
        if place >= len(supervised):
            return None
        found = np.zeros((len(target.labels), 2), np.float32)
        found[supervised[place], 0] = -1  # the first output is the loss
        return found

    def gather(some: Sequence[Encoded]) -> BatchTexts:
        return task.gather(some, np.random.default_rng(0))

    def readings(example: Example) -> list[Reading]:
        return [_prompt(task, example)]

    return Objective(name, None, "log-probability", weights, readings, answered, gather, _log_probability)


def _prompt(task: Writing, example: Example) -> Reading:
    """The prompt, and in it the lines that the example says: the words of the template are not explained."""
    example = task.trained_form(example)
    text, at = task.prompt_of(example), 0
    spans: list[tuple[int, int]] = []
    for turn in conversation(question(example)):
        for part in filter(None, map(str.strip, turn.content.replace(MARK, "\n").splitlines())):
            start = text.find(part, at)
            if start >= 0:
                at = start + len(part)
                spans.append((start, at))
    return Reading(text, tuple(spans))


def _log_probability(model: Network, batch: Batch, weights: jax.Array) -> jax.Array:
    """float32 [rows]: Σ −weights · loss of each row. `Task.predict` has no gradient."""
    table, bias = model.head.output(model.backbone)
    spec, own = model.head.spec, weights[..., 0]

    def of_row(row: tuple[Any, ...]) -> jax.Array:
        hidden, labels, weight = (each[None] for each in row)
        return losses.linear_cross_entropy(
            hidden, table, labels, weight, bias=bias, scale=spec.scale, soft_cap=spec.soft_cap
        )

    return jax.lax.map(of_row, (model.hidden(batch), batch.own.labels, own))
