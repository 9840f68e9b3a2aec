"""Language modeling: supervised fine-tuning on the answers to instructions."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.batch import Batch, BatchTexts, Text, end_to_end, images_of
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.own_template import OwnTemplate, special_tokens
from instructrec_jax.data.prompts import (
    Pieces,
    Rendering,
    Tokens,
    all_text,
    answer,
    check_fast,
    conversation,
    find_template,
    prompt,
    question,
    render,
    tokenize_pieces,
    written,
)
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.text import TokenTexts
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.tasks.answers import Answer, TextAnswer
from instructrec_jax.tasks.averaging import Judged, OutputKind
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, examples_of, name_of
from instructrec_jax.tasks.generation.ngram import KneserNey
from instructrec_jax.tasks.generation.writing_config import LanguageModelConfig
from instructrec_jax.tasks.generation.written_objectives import written_objectives
from instructrec_jax.tasks.images import are_words, cut_pictured, decode_once, marked, tokenize_pictured, with_pictures
from instructrec_jax.tasks.objective import Choice, Objective
from instructrec_jax.tasks.prediction import WINDOW, Predict
from instructrec_jax.tasks.scores import Scores, owners_of
from instructrec_jax.tasks.targets import TokenLabels
from instructrec_jax.tasks.texts import tokenize, too_long

NGRAM_ORDER = 5
T = TypeVar("T")


@storable
@dataclass(frozen=True)
class NextTokens:
    """The target of a text: int32 [length of the text, or of its target] each.

    labels[i] is the token after position i; supervised[i] is 1 where it counts in the loss.
    """

    labels: np.ndarray
    supervised: np.ndarray


class LanguageModelTask(Task):
    """Next-token prediction; the target of an example is `NextTokens`."""

    greater_is_better = False
    predicts_words = True
    gathers_alone = True
    per_token = True
    writes = True
    outputs_are: OutputKind | None = "words"
    reads = "conversation"
    generation = GenerationConfig()  # of `answers`
    suppressed: tuple[int, ...] = ()  # tokens that no answer has
    blank: int | tuple[int, ...] | None = None  # see `inference.generation_config.TokenRules`

    def __init__(self, config: LanguageModelConfig, context: TaskContext):
        self.config, self.context, self.tokenizer = config, context, context.tokenizer
        self.answer_texts: TokenTexts = self.tokenizer
        self.is_pair = context.kind == "encoder_decoder"
        if context.kind == "encoder":
            raise ValueError(
                "task.type language_model needs a decoder or an encoder–decoder: use masked_lm for encoders."
            )
        if config.max_target_length is not None and not self.is_pair:
            raise ValueError("task.max_target_length is for encoder–decoders: set data.max_length for decoders.")
        if config.max_target_length is not None and config.max_target_length < 1:
            raise ValueError(f"task.max_target_length should be at least 1, but is {config.max_target_length}.")
        if self.is_pair and config.train_on == "all":
            raise ValueError("task.train_on all is for decoders: set completions for an encoder–decoder.")
        if self.is_pair and context.decoder_start_token_id is None:
            raise ValueError(
                "the checkpoint's config.json has no decoder_start_token_id, the first token of answers: add it."
            )
        if self.is_pair and self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token to end answers: set one in its files.")
        if context.prompt_type and config.train_on == "all":
            raise ValueError(
                "task.train_on all trains on prompts, but this network reads them in both directions (PaliGemma), so "
                "each token would see the next one: set completions."
            )
        if context.lower_case:
            raise ValueError(
                "the folder is a sentence encoder with lower-cased texts, not a language model: choose another one."
            )
        check_fast(self.tokenizer)
        self._longest_target = config.max_target_length or min(
            context.max_length, context.answer_limit or context.max_length
        )
        self.max_target_length = self._longest_target if self.is_pair else None
        self.template = find_template(config.template, self.tokenizer, context.kind)
        self.rendering = _rendering(config)
        if self.template is None:
            OwnTemplate(self.tokenizer, self.rendering)  # raises for unsupported settings
        elif config.enable_thinking is not None:
            raise ValueError(
                "task.enable_thinking is for the tokenizer's chat template, but task.template is another: leave it out."
            )
        self._fitted: tuple[object, dict[str, KneserNey]] = (None, {})

    def model(self, source: Source) -> Model:
        return Model(source.backbone, task_head(source, "lm"))

    # ------------------------------------------------------------ texts

    def encode(self, examples: Sequence[Example]) -> list[Encoded[NextTokens]]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        eos, notes = self.tokenizer.eos_token if not self.is_pair else "", Counter[str]()
        pieces = [
            _named(name, partial(self._written_pieces, e, eos, notes)) for e, name in zip(examples, names, strict=True)
        ]
        for what, number in notes.items():
            self.context.count(what, number)
        marker = None if self.context.image_tokens is None else self.context.image_tokens.marker
        special = re.compile("|".join(map(re.escape, special_tokens(self.tokenizer) - {marker})) or "$^")
        mixed = sum(special.search(all_text(e)) is not None for e in examples)
        self.context.count("texts that contain a special token as plain text", mixed)
        encode = self._encode_pairs if self.is_pair else self._encode_texts
        return [e for e in encode(examples, names, pieces) if e is not None]

    def _written_pieces(self, example: Example, eos: str | None, notes: Counter[str] | None = None) -> Pieces:
        """The training text, see `data.prompts.written`."""
        example = marked(example, self.context)
        marks = {turn.learn for turn in example.messages if turn.role == "assistant"}
        if False in marks and self.config.train_on == "all":
            raise ValueError(
                "task.train_on all trains on every token, but a turn has weight 0 (or train false): set it to "
                "completions, or fields.ignore to [messages.weight, messages.train]."
            )
        turns = conversation(example) if self.is_pair else []
        if turns and (turns[-1].extra or not turns[-1].learn):
            what = ", ".join(turns[-1].extra) or "weight 0"
            raise ValueError(
                f"an encoder–decoder trains on the text of the last turn, which has {what}: remove the row."
            )
        return written(example, self.template, self.tokenizer, eos=eos, rendering=self.rendering, notes=notes)

    def _encode_texts(
        self, examples: Sequence[Example], names: list[str], pieces: list[Pieces]
    ) -> list[Encoded[NextTokens] | None]:
        encoded: list[Encoded[NextTokens] | None] = []
        for example, name, tokens in zip(
            examples, names, tokenize_pictured(examples, names, pieces, self.context), strict=True
        ):
            if self.context.pixels is not None:
                decode_once(example, name, self.context.pixels)
            if self.config.train_on == "completions":
                self.context.count(
                    "answers whose first characters share a token with the prompt, which is not trained on", tokens.torn
                )
            kept = self._shorten(tokens, name)
            if kept is None:
                continue
            supervised = np.zeros(len(kept.ids), np.int32)
            supervised[:-1] = (
                kept.said[1:] if self.config.train_on == "completions" else are_words(kept.ids, self.context)[1:]
            )
            if not supervised.any():
                raise ValueError(
                    f"{name} has no token to train on: its prompt fills data.max_length ({self.context.max_length}). "
                    "Raise it, or set data.truncate to left or drop."
                )
            labels = np.append(kept.ids[1:], 0).astype(np.int32)
            text = with_pictures(Text(kept.ids, self._types(kept)), example, self.context)
            encoded.append(Encoded(text, NextTokens(labels, supervised), example))
        return encoded

    def _types(self, tokens: Tokens) -> np.ndarray | None:
        """int32 [length]: the prompt before the first answer, for networks that read it in both directions."""
        if not self.context.prompt_type:
            return None
        return np.where(np.cumsum(tokens.said) == 0, self.context.prompt_type, 0).astype(np.int32)

    def _shorten(self, tokens: Tokens, name: str) -> Tokens | None:
        if len(tokens.ids) <= self.context.max_length:
            return tokens
        if too_long(len(tokens.ids), name, self.context) == "drop":
            return None
        kept = cut_pictured(tokens, name, self.context)
        return replace(tokens, ids=tokens.ids[kept], said=tokens.said[kept])

    def _encode_pairs(
        self, examples: Sequence[Example], names: list[str], pieces: list[Pieces]
    ) -> list[Encoded[NextTokens] | None]:
        sources = tokenize([self.prompt_of(example) for example in examples], names, self.context)
        answers = [conversation(example)[-1].content for example in examples]
        encoded: list[Encoded[NextTokens] | None] = []
        for example, name, text, ids in zip(examples, names, sources, self.answer_tokens(answers), strict=True):
            if text is None or len(ids) > self._longest_target and self._is_dropped(len(ids), name):
                continue
            labels = np.array(ids[: self._longest_target], np.int32)
            target = np.array([self.context.decoder_start_token_id, *labels[:-1]], np.int32)
            text = Text(text.tokens, text.types, target)
            encoded.append(Encoded(text, NextTokens(labels, np.ones_like(labels)), example))
        return encoded

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of an encoder–decoder's answers, with their end."""
        end = self.tokenizer.eos_token_id
        written = self.tokenizer(text_target=list(answers), truncation=False, verbose=False)["input_ids"]
        return [ids if ids[-1:] == [end] else [*ids, end] for ids in written]

    def _is_dropped(self, length: int, name: str) -> bool:
        """Whether a too long answer is dropped; truncate left and right both remove its end."""
        truncate = self.context.truncate
        if truncate == "error":
            raise ValueError(
                f"the answer of {name} has {length} tokens, but task.max_target_length is {self._longest_target}. "
                "Raise it, or set data.truncate to left, right (both remove the end) or drop."
            )
        self.context.count(f"answers {'dropped' if truncate == 'drop' else 'cut'}", 1)
        return truncate == "drop"

    def prompt_of(self, example: Example) -> str:
        return prompt(marked(example, self.context), self.template, self.tokenizer, self.context.kind, self.rendering)

    def prompts(self, examples: Sequence[Example]) -> list[Text]:
        """The prompts as in training: a decoder's prompt, with its pictures, or an encoder's source.

        Raises:
          ValueError: a prompt is longer than `max_length` (prompts are not truncated here).
        """
        names = [name_of(example, number) for number, example in enumerate(examples)]
        texts = [_named(name, partial(self.prompt_of, e)) for e, name in zip(examples, names, strict=True)]
        if self.is_pair:
            ids = [np.array(row, np.int32) for row in self.tokenizer(texts, verbose=False)["input_ids"]]
        else:
            pieces: list[Pieces] = [[(text, False)] for text in texts]
            ids = [tokens.ids for tokens in tokenize_pictured(examples, names, pieces, self.context)]
        for name, row in zip(names, ids, strict=True):
            if len(row) > self.context.max_length:
                raise ValueError(
                    f"the prompt of {name} has {len(row)} tokens, but data.max_length is {self.context.max_length}: "
                    "shorten it, or raise data.max_length."
                )
        return [with_pictures(Text(row), example, self.context) for row, example in zip(ids, examples, strict=True)]

    @property
    def ends(self) -> tuple[int, ...]:
        """The end tokens of an answer: EOS and the template's end of turn."""
        eos = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        if self.is_pair:
            return tuple(eos)
        some = self._written_pieces(Example(instruction="a", output="b"), self.tokenizer.eos_token)
        (tokens,) = tokenize_pieces([some], self.tokenizer)
        return tuple(dict.fromkeys([*eos, int(tokens.ids[-1])]))

    # ------------------------------------------------------------ loss

    def gather(self, encoded: Sequence[Encoded[NextTokens]], rng: np.random.Generator) -> BatchTexts:
        return BatchTexts([e.text for e in encoded], _labels(encoded))

    def loss(self, model: Network, batch: Batch[TokenLabels], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        weights = batch.own.weights
        total = losses.linear_cross_entropy(
            model.hidden(batch, inputs.dropout),
            label_smoothing=self.config.label_smoothing,
            z_loss=self.config.z_loss,
            labels=batch.own.labels,
            weights=weights,
            **output_layer(model),
        )
        return total, jnp.sum(weights)

    def soft_outputs(self, model: Network, batch: Batch[TokenLabels], inputs: LossInputs) -> list[SoftOutputs]:
        hidden = model.hidden(batch, inputs.dropout)
        return [SoftOutputs("classes", hidden, batch.own.weights, **output_layer(model))]

    def predict(self, model: Network, batch: Batch[TokenLabels]) -> jax.Array:
        """float32 [rows, length or target length, 2], see `label_losses`."""
        return label_losses(model, batch, batch.own)

    # ------------------------------------------------------------ answers

    def trained_form(self, example: Example) -> Example:
        """The example as used in training and for prompts."""
        return example

    def asked(self, encoded: Sequence[Encoded]) -> list[Text]:
        """The prompts, of at most data.max_length tokens."""
        if self.is_pair:
            return [e.text for e in encoded]
        examples = [self.trained_form(e.example) for e in encoded]
        names = [f"the prompt of example {e.id!r}" for e in examples]
        texts: list[Pieces] = [[(self.prompt_of(x), False)] for x in examples]
        prompts = []
        for example, name, tokens in zip(
            examples, names, tokenize_pictured(examples, names, texts, self.context), strict=True
        ):
            ids = tokens.ids
            if len(ids) > self.context.max_length:
                if too_long(len(ids), name, self.context) != "left":
                    raise ValueError(
                        f"{name} has {len(ids)} tokens, but data.max_length is {self.context.max_length}: raise it, or "
                        "set data.truncate to left, which keeps the end of the prompt, where the answer begins."
                    )
                ids = ids[cut_pictured(tokens, name, self.context)]
            prompts.append(with_pictures(Text(ids), example, self.context))
        return prompts

    def seen(self, prompts: Sequence[Text]) -> Sequence[RowImages] | None:
        """The images (or sounds) of prompts, see `Predict.write`; decoded when they are read."""
        read = self.context.pixels
        if read is None or not any(text.images for text in prompts):
            return None
        return Mapped(lambda text: images_of(text, read.shape), prompts)

    def unanswered(self, example: Example) -> Example:
        return replace(question(example), output=".")

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> Sequence[Answer]:
        return self.generated(predict, encoded)

    def generated(self, predict: Predict, encoded: Sequence[Encoded]) -> list[TextAnswer]:
        """The texts generated for examples, without spaces around them."""
        asked = self.asked(encoded)
        written = predict.write([text.tokens for text in asked], self.generation, self.seen(asked))
        return [TextAnswer(each.text.strip(), each.log_probability) for each in written]

    def objectives(self, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
        return written_objectives(self, predict, encoded, choice)

    # ------------------------------------------------------------ scores

    def score(self, predict: Predict, encoded: Sequence[Encoded[NextTokens]]) -> Scores:
        """Teacher-forced loss and accuracy over all supervised tokens: see `_scores`."""
        outputs = predict.over(encoded, lambda some: BatchTexts([e.text for e in some], _labels(some)))
        found = (output[e.target.supervised > 0].astype(np.float64) for e, output in outputs)
        sums = ((len(each), each[:, 0].sum(), each[:, 1].sum()) for each in found)
        tokens, loss, hits = np.fromiter(sums, np.dtype((np.float64, 3))).T
        return _scores(encoded, tokens.astype(np.int64), loss, hits)

    def judged(self, predict: Predict, encoded: Sequence[Encoded[NextTokens]]) -> Judged:
        """Two classes for each supervised token: that token, or another."""
        outputs = predict.over(encoded, lambda some: BatchTexts([e.text for e in some], _labels(some)))
        found = [output[e.target.supervised > 0, 0].astype(np.float64) for e, output in outputs]
        loss = np.maximum(np.concatenate(found), 1e-12)
        return Judged(np.stack([-loss, np.log(-np.expm1(-loss))], -1), np.zeros(len(loss), np.int64))

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """Unigram and n-gram language models of the training texts (prompts and answers).

        They are scored on the same tokens as the model, teacher-forced. An unseen token has its share of a uniform
        distribution over the tokenizer's vocabulary.
        """
        words, own = max(self.tokenizer.get_vocab().values()) + 1, self.context.answer_vocabulary
        first_answer = 0 if own is None else words
        if self._fitted[0] is not train:
            texts = [_whole(e, first_answer)[0] for e in train]
            orders = {"unigram": 1, f"{NGRAM_ORDER}-gram": NGRAM_ORDER}
            self._fitted = train, {name: KneserNey(texts, order, words + (own or 0)) for name, order in orders.items()}
        tokens: list[int] = []
        losses: dict[str, list[float]] = {name: [] for name in self._fitted[1]}
        for first in range(0, len(test), WINDOW):
            whole = [_whole(e, first_answer) for e in test[first : first + WINDOW]]
            tokens += [len(places) for _, places in whole]
            for name, model in self._fitted[1].items():
                each = model.log_probabilities([text for text, _ in whole])
                losses[name] += [(-p[places]).sum() for p, (_, places) in zip(each, whole, strict=True)]
        return {name: _scores(test, np.array(tokens), np.array(each)) for name, each in losses.items()}


def label_losses(model: Network, batch: Batch, own: TokenLabels) -> jax.Array:
    """float32 [rows, length or target length, 2]: loss of each supervised label, and 1 where it is predicted."""
    loss, hit = model.head.token_losses(model.backbone, model.hidden(batch), own.labels, own.weights)
    return jnp.stack([loss, hit.astype(jnp.float32)], -1)


def _rendering(config: LanguageModelConfig) -> Rendering:
    try:
        day = date.fromisoformat(config.date)
    except ValueError as error:
        raise ValueError(f"task.date should be a day such as 2024-07-26, but is {config.date!r} ({error}).") from None
    return Rendering(day, config.enable_thinking)


def _named(name: str, function: Callable[[], T]) -> T:
    try:
        return function()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def output_layer(model: Network) -> dict[str, Any]:
    """The arguments of `adapters.losses.linear_cross_entropy` that the model's output layer is."""
    table, bias = model.head.output(model.backbone)
    return {"table": table, "bias": bias, "scale": model.head.spec.scale, "soft_cap": model.head.spec.soft_cap}


def _labels(encoded: Sequence[Encoded[NextTokens]]) -> TokenLabels:
    supervised = end_to_end([e.target.supervised for e in encoded])
    return TokenLabels(end_to_end([e.target.labels for e in encoded]), supervised)


def _whole(encoded: Encoded[NextTokens], first_answer: int) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of an example (prompt and answer, counted from `first_answer`), and the places of supervised ones."""
    labels, places = encoded.target.labels, np.flatnonzero(encoded.target.supervised)
    if encoded.text.target is None:
        return encoded.text.tokens, places + 1
    return np.concatenate([encoded.text.tokens, labels + first_answer]), places + len(encoded.text.tokens)


def _scores(
    encoded: Sequence[Encoded], tokens: np.ndarray, totals: np.ndarray, right: np.ndarray | None = None
) -> Scores:
    """Loss (nats per token), perplexity and token accuracy; with several tasks, loss and accuracy also per task.

    All tokens have equal weight: the case value of "loss" is an example's total loss over the mean number of tokens per
    example, so that the mean over cases is the metric; of some of the cases alone, it is that of their own tokens.

    Args:
      tokens: int64 [examples], supervised tokens.
      totals, right: float64 [examples], sums of their losses, and of the tokens that are predicted.
    """
    tasks = np.array([e.example.task for e in encoded])

    def metrics(chosen: np.ndarray, label: str) -> dict[str, float]:
        count = tokens[chosen].sum()
        found = {f"loss{label}": float(totals[chosen].sum() / count)}
        found |= {} if label else {"perplexity": float(np.exp(found["loss"]))}
        found |= {} if right is None else {f"token accuracy{label}": float(right[chosen].sum() / count)}
        return found

    result = metrics(np.ones(len(tasks), bool), "")
    names = sorted(set(tasks.tolist()))
    for name in names if len(names) > 1 else []:
        result |= metrics(tasks == name, f" ({name or 'no task'})")
    own = {"loss": CorpusMetric(lambda some: float(totals[some].sum() / tokens[some].sum()), len(tokens))}
    scores = Scores(result, {"loss": totals / tokens.mean()}, Mapped(_record, encoded, totals, tokens), corpus=own)
    return scores.owned_by(owners_of(examples_of(encoded)))


def _record(e: Encoded, total: float, count: int) -> dict[str, object]:
    return {
        "id": e.example.id,
        "task": e.example.task,
        "input": render(e.example),
        "reference": answer(e.example),
        "mean_log_probability": -float(total / count),  # of the reference's tokens
        "tokens": int(count),
    }
