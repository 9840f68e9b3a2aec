"""From tokenized prompts to answers as text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from tqdm import tqdm

from instructrec_jax.backbones.folder import find_family, read_config
from instructrec_jax.backbones.reading import answer_limit, input_limit
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.hf_types import PreTrainedTokenizerBase
from instructrec_jax.inference.decoding import Answer, Decoder, Network, Parameters
from instructrec_jax.inference.generation_config import GenerationConfig, token_rules
from instructrec_jax.inference.text import AnswerText, TextStream, TokenTexts, cut_at_stop

LOOK_EVERY = 8  # tokens between two searches for stop sequences


@dataclass(frozen=True)
class Generated:
    """An answer's text.

    Attributes:
      finish: the reason why it ended: "eos", "stop" (a stop sequence) or "length" (max_new_tokens).
      log_probability: Σ log p of the written tokens with the end token or stop sequence, given the prompt (nats); log p
        as in `decoding.Answer`. Without an end token where finish is "length".
    """

    text: str
    finish: str
    log_probability: float


@dataclass(frozen=True)
class Writer(Generic[Network]):
    """A decoder, and what makes texts of its tokens."""

    decoder: Decoder[Network]
    tokenizer: TokenTexts

    def write(
        self,
        params: Parameters,
        prompts: Sequence[np.ndarray],
        names: Sequence[str],
        config: GenerationConfig,
        *,
        show: Callable[[str], None] | None = None,
        progress: bool = False,
        images: Sequence[RowImages] | None = None,
    ) -> list[Generated]:
        """Answers prompts (int32 [tokens] each), in their order.

        Args:
          names: the prompts' names in errors.
          show: receives the answer to a single prompt piece by piece: whole characters, without stop sequences.
          progress: whether to show a progress bar.
          images: of the prompts, see `Decoder.answer`.

        Raises:
          ValueError: before any computation: a prompt is empty, or too long for `max_new_tokens`.
        """
        if not prompts:
            return []
        self.decoder.check(prompts, names, config)
        text = AnswerText(self.tokenizer, self.decoder.rules.eos, config.stop)
        stream = TextStream(text, config.stop)

        def look(number: int, ids: list[int]) -> bool:
            if show is not None and (piece := stream.update(ids)):
                show(piece)
            return text.stops(ids)

        def generated(answer: Answer) -> Generated:
            end = len(answer.tokens)
            if answer.finish == "stop":  # the tokens behind the stop sequence were written before it was looked for
                end = next(n for n in range(1, end + 1) if text.stops(answer.tokens[:n]))
            written = cut_at_stop(text(answer.tokens), config.stop)[0]
            return Generated(written, answer.finish, math.fsum(answer.log_probs[:end]))

        watched = bool(config.stop) or show is not None
        answers = self.decoder.answer(
            params,
            prompts,
            config,
            every=1 if show is not None else LOOK_EVERY if watched else None,
            stops=look if watched else None,
            images=images,
        )
        found: dict[int, Answer] = dict(tqdm(answers, total=len(prompts), disable=None if progress else True))
        if show is not None:
            show(stream.update(found[0].tokens, final=True))
        return [generated(found[number]) for number in range(len(prompts))]


class WritingContext(Protocol):
    """What a writer needs of `tasks.base.TaskContext`."""

    folder: Path | None
    tokenizer: PreTrainedTokenizerBase
    kind: str
    answer_vocabulary: int | None


@runtime_checkable
class WritingTask(Protocol):
    """What a writer needs of a language-model task (`tasks.generation.language_model`)."""

    @property
    def context(self) -> WritingContext: ...

    @property
    def ends(self) -> tuple[int, ...]:
        """Additional tokens that end an answer."""

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Tokens that no answer has."""

    @property
    def blank(self) -> int | tuple[int, ...] | None:
        """See `TokenRules.blank`."""

    @property
    def answer_texts(self) -> TokenTexts:
        """What makes texts of the tokens of answers."""

    @property
    def view(self) -> Callable[..., object]:
        """The network -> its part with `backbone` and `head`."""


def open_writer(task: object, graphdef: nnx.GraphDef[Network], mesh: DeviceMesh) -> Writer[Network]:
    """The writer of a language-model task (see `WritingTask`), limited to the network's input length."""
    if not isinstance(task, WritingTask):
        raise TypeError(f"a {type(task).__name__} writes no text.")
    context = task.context
    if context.folder is None:
        raise ValueError("a writer needs the backbone's folder, with its generation settings.")
    network = read_config(context.folder)
    speech = find_family(network.model_type).sounds
    rules = token_rules(context.folder, network, context.tokenizer, context.kind, task.ends, speech=speech)
    rules = replace(rules, suppressed=(*rules.suppressed, *task.suppressed), blank=task.blank)
    if context.answer_vocabulary is not None:  # where the end tokens of texts are other ones
        rules = replace(rules, eos=task.ends)
    decoder = Decoder(
        graphdef,
        mesh,
        rules,
        max_length=input_limit(network),
        max_answer=answer_limit(network),
        encoder_decoder=context.kind == "encoder_decoder",
        view=task.view,
    )
    return Writer(decoder, task.answer_texts)
