"""Generative recommendation: a language model writes the codes of the next item (TIGER: Rajput et al., 2023).

Items are named by semantic ids (`ranking.semantic_ids`), whose codes are tokens of the network's vocabulary: <a_12>,
<b_3>, ... An answer is searched along the items' trie (`inference.code_search`), so it is always an allowed item.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from instructrec_jax.data.batch import BatchTexts, end_to_end
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import question
from instructrec_jax.files import read_json
from instructrec_jax.inference.code_search import CodeTrie
from instructrec_jax.ranking.semantic_ids import CODES, ENCODER, FOLDER, SemanticIds
from instructrec_jax.tasks.answers import ItemsAnswer
from instructrec_jax.tasks.base import Encoded, Task, TaskContext, name_of
from instructrec_jax.tasks.generation.answer_likelihood import LikelihoodTask
from instructrec_jax.tasks.generation.language_model import LanguageModelTask
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.ranking_config import GenerativeConfig
from instructrec_jax.tasks.ranking.ranking_task import RankingTask, Target
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.targets import TokenLabels


class Encoder(TypedDict):
    """The network or run whose vectors an item's codes come from."""

    encoder: str


MISSED = 1.0  # nats below the last item found: the score of all others


@storable
@dataclass(frozen=True)
class CodedTarget(Target):
    """A target with the next-token labels of the example's text (see `NextTokens`)."""

    labels: np.ndarray
    supervised: np.ndarray


class GenerativeTask(RankingTask, LikelihoodTask):
    """A language model whose answers are the codes of the positive items; a ranking of those found by beam search."""

    config: GenerativeConfig
    has_vectors = False
    reads_history = True
    greater_is_better = True
    outputs_are = None
    judged = Task.judged
    objectives = Task.objectives

    def __init__(self, config: GenerativeConfig, context: TaskContext):
        LanguageModelTask.__init__(self, config, context)
        RankingTask.__init__(self, config, context)
        if config.beams < max(config.cutoffs):
            raise ValueError(
                f"task.beams is {config.beams}, but task.cutoffs asks for the best {max(config.cutoffs)}: raise beams."
            )
        if config.history_limit < 0:
            raise ValueError(f"task.history_limit should be at least 0, but is {config.history_limit}.")
        if config.max_target_length is not None:
            raise ValueError("task.max_target_length is known from the semantic ids: leave it out.")
        if context.truncate == "right" and not self.is_pair:
            raise ValueError("data.truncate right would cut the answer at the end of a text: set it to left or drop.")
        self.ids_folder = self._find(context)
        self.ids = SemanticIds.load(self.ids_folder)
        known = len(self.catalogue) - context.new_items
        if list(self.ids.items) != self.catalogue.ids[:known]:
            raise ValueError(
                f"{self.ids_folder} has the codes of other items than the catalog {config.catalogue}: make them with "
                f"`python -m instructrec_jax.prepare ids --catalogue {config.catalogue}`."
            )
        if context.new_items:
            self.ids = self._with_new(self.catalogue.ids[known:], self.catalogue.texts[known:])
        self.trie = CodeTrie(self.ids.codes, self._first_tokens(), self.ids.sizes)
        self._longest_target = len(self.ids.sizes) + 1
        self.max_target_length = self._longest_target if self.is_pair else None

    @staticmethod
    def _find(context: TaskContext) -> Path:
        assert context.folder is not None
        folder = context.folder / FOLDER
        if not (folder / CODES).is_file():
            raise ValueError(
                f"{context.folder} has no {FOLDER}/{CODES}: make a network that knows the items' codes with "
                "`python -m instructrec_jax.prepare ids`, and set backbone.path to it."
            )
        return folder

    def _with_new(self, items: Sequence[str], texts: Sequence[str]) -> SemanticIds:
        """The codes, and those of new items, from the vectors that the encoder of `prepare ids` has for their texts."""
        encoder, find = read_json(self.ids_folder / ENCODER, Encoder)["encoder"], self.context.text_vectors
        assert find is not None
        try:
            return self.ids.with_new(items, find(encoder, texts))
        except ValueError as error:
            raise ValueError(f"new items get their codes from the vectors of {encoder}: {error}") from error

    def _first_tokens(self) -> tuple[int, ...]:
        """The token of code 0 of each level. Raises ValueError for a tokenizer without the codes."""
        vocabulary, tokens = self.tokenizer.get_vocab(), self.ids.tokens
        numbers = [vocabulary.get(token, -1) for token in tokens]
        if numbers[0] < 0 or numbers != list(range(numbers[0], numbers[0] + len(tokens))):
            raise ValueError(
                f"the tokenizer does not have the tokens {tokens[0]} to {tokens[-1]} of {self.ids_folder}, one after "
                "the other: make the network with `python -m instructrec_jax.prepare ids`."
            )
        starts = np.cumsum([0, *self.ids.sizes[:-1]]) + numbers[0]
        return tuple(starts.tolist())

    @property
    def kept_folders(self) -> Mapping[str, Path]:
        return {FOLDER: self.ids_folder}

    # -------------------------------------------------------------- texts

    def asked_of(self, example: Example) -> Example:
        """The instruction, and the codes of the last items of the history."""
        asked = question(example)
        limit = self.config.history_limit
        if not limit or not example.history:
            return asked
        # One item a line: with `train_on: all` each item of the history is learned as the answer to those before it.
        codes = "\n".join(self.ids.text(n) for n in self.catalogue.numbers(example.history[-limit:]).tolist())
        return replace(asked, input=f"{asked.input}\n{codes}" if asked.input else codes)

    def trained_form(self, example: Example) -> Example:
        return self.asked_of(example)

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        """An encoder–decoder's answer: the codes of an item, given by its text, and the end token."""
        ids = self.tokenizer(list(answers), add_special_tokens=False, verbose=False)["input_ids"]
        return [[*row, self.tokenizer.eos_token_id] for row in ids]

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The text of each example with a random one of its positive items as the answer."""
        rng = np.random.default_rng(self.context.seed)
        targets, trained = [], []
        for number, example in enumerate(examples):
            target = self.target(example, name_of(example, number))
            answer = self.ids.text(int(rng.choice(target.items)))
            targets.append(target)
            trained.append(replace(self.asked_of(example), output=answer, id=example.id or str(number)))
        place = {id(example): number for number, example in enumerate(trained)}
        encoded = []
        for e in LanguageModelTask.encode(self, trained):
            number = place[id(e.example)]
            items, history = targets[number].items, targets[number].history
            target = CodedTarget(items, history, e.target.labels, e.target.supervised)
            encoded.append(Encoded(e.text, target, examples[number]))
        return encoded

    def encoding_depends_on(self) -> dict[str, object]:
        return RankingTask.encoding_depends_on(self) | {"codes": hashlib.sha256(self.ids.codes.tobytes()).hexdigest()}

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        labels = TokenLabels(
            end_to_end([e.target.labels for e in encoded]), end_to_end([e.target.supervised for e in encoded])
        )
        return BatchTexts([e.text for e in encoded], labels)

    # -------------------------------------------------------------- scores

    def found(
        self, predict: Predict, encoded: Sequence[Encoded[Target]], excluded: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The items of `inference.code_search.Found`, and their scores, without those `excluded` for each case."""
        asked = self.asked(encoded)
        return predict.find([text.tokens for text in asked], self.trie, self.config.beams, excluded)

    def score_items(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> Callable[[slice], np.ndarray]:
        """Log-probabilities of the items found, in nats; all others have the same score below them."""
        seen = [e.target.seen if self.config.mask_seen else e.target.items[:0] for e in encoded]

        def score(block: slice) -> np.ndarray:
            items, values = self.found(predict, encoded[block], seen[block])
            scores = np.empty((len(items), len(self.catalogue)), np.float32)
            for row, own, found in zip(scores, items, values, strict=True):
                row[:] = found[own >= 0].min(initial=0.0) - MISSED
                row[own[own >= 0]] = found[own >= 0]
            return scores

        return score

    def best(
        self, predict: Predict, encoded: Sequence[Encoded[Target]], allowed: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if k > self.config.beams:
            raise ValueError(f"{k} items are asked for, but task.beams is {self.config.beams}: raise it.")
        items, scores = self.found(predict, encoded, [np.flatnonzero(~row) for row in allowed])
        wide = min(k, len(self.catalogue))
        return np.maximum(items[:, :wide], 0).astype(np.int64), scores[:, :wide].astype(np.float64)

    def score_candidates(
        self, predict: Predict, encoded: Sequence[Encoded[Target]], candidates: np.ndarray
    ) -> np.ndarray:
        """Exact log-probabilities of the candidates' codes, in nats."""
        texts = [[self.ids.text(item) for item in row] for row in candidates.tolist()]
        asked = [[(self.asked_of(e.example), own)] for e, own in zip(encoded, texts, strict=True)]
        found = self.log_likelihoods(predict, asked, end=False)
        return np.array([values[0][:, 0] for values in found], np.float32)

    def answers(self, predict: Predict, encoded: Sequence[Encoded[Target]], k: int = 10) -> list[ItemsAnswer]:
        allowed = np.ones((len(encoded), len(self.catalogue)), bool)
        for row, e in zip(allowed, encoded, strict=True):
            if e.example.candidates:
                row[:] = np.isin(np.arange(len(row)), self._listed(e))
            if self.config.mask_seen:
                row[e.target.history] = False
        items, scores = self.best(predict, encoded, allowed, min(k, self.config.beams))
        items = np.where(np.isneginf(scores), -1, items)
        return [self._named(*best) for best in zip(items.tolist(), scores.tolist(), strict=True)]

    def check(self, encoded: Sequence[Encoded[Target]]) -> None:
        self.asked(encoded)  # raises for a prompt that is too long
        RankingTask.check(self, encoded)

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        found = RankingTask.score(self, predict, encoded)
        return replace(found, protocol=f"{found.protocol}; items found with {self.config.beams} beams")
