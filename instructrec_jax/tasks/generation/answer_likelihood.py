"""Likelihoods of given answers under a language model, shared by ranking and choosing."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import jax
import numpy as np

from instructrec_jax.data.batch import Batch, Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import Pieces, tokenize_pieces
from instructrec_jax.inference import likelihood
from instructrec_jax.tasks.base import Network, Task
from instructrec_jax.tasks.encoded import Encoded
from instructrec_jax.tasks.generation.language_model import LanguageModelTask, label_losses
from instructrec_jax.tasks.images import tokenize_pictured, with_pictures
from instructrec_jax.tasks.objective import Choice, Objective
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.targets import TokenLabels
from instructrec_jax.tasks.texts import tokenize

Question = tuple[Example, list[str]]  # an example, and the answers to score
Whole = tuple[np.ndarray, np.ndarray]  # tokens of a text, and which of them are scored


class LikelihoodTask(LanguageModelTask):
    """Prompt and answer are tokenized as one text, as in training (see `data.prompts.tokenize_pieces`).

    A token with characters of both belongs to the prompt and is not scored.
    """

    def predict(self, model: Network, batch: Batch[TokenLabels | likelihood.BranchTokens]) -> jax.Array:
        own = batch.own
        if isinstance(own, likelihood.BranchTokens):
            return likelihood.branch_log_probs(model, batch, own)
        return label_losses(model, batch, own)

    def objectives(self, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
        return Task.objectives(self, predict, encoded, choice)  # answers are compared, not written

    def log_likelihoods(
        self, predict: Predict, asked: Sequence[Sequence[Question]], *, end: bool
    ) -> list[list[np.ndarray]]:
        """float64 [answers, 2] for each question of each case, see `likelihood.log_likelihoods`.

        A decoder reads the common prefix of a case's texts once; an encoder–decoder encodes each question once.
        """
        requests: list[likelihood.Request] = []
        for questions in asked:
            if self.is_pair:
                requests += [
                    likelihood.encode_once(self._source(e), self._answers(e, answers, end=end), self._start)
                    for e, answers in questions
                ]
            elif questions:
                shared = likelihood.share_prefix(
                    self._fitting([w for e, a in questions for w in self._answers(e, a, end=end)])
                )
                prefix = with_pictures(shared.prefix, questions[0][0], self.context)
                requests.append(replace(shared, prefix=prefix))
        values = iter(likelihood.log_likelihoods(predict, requests))
        found = []
        for questions in asked:
            if self.is_pair:
                found.append([next(values) for _ in questions])
                continue
            borders = np.cumsum([len(answers) for _, answers in questions])[:-1]
            found.append(np.split(next(values), borders) if questions else [])
        return found

    def check_question(self, example: Example, answers: Sequence[str]) -> None:
        """Raises ValueError where a question with its answers is too long."""
        if self.is_pair:
            self._source(example)
        else:
            self._fitting(self._answers(example, answers))

    @cached_property
    def _start(self) -> int:
        assert self.context.decoder_start_token_id is not None  # checked by LanguageModelTask
        return self.context.decoder_start_token_id

    def _source(self, example: Example) -> Text:
        (text,) = tokenize([self.prompt_of(example)], [f"example {example.id!r}"], self.context)
        if text is None:
            raise ValueError(f"example {example.id!r} is longer than data.max_length (it cannot be dropped): raise it.")
        return text

    def _answers(self, example: Example, answers: Sequence[str], *, end: bool = True) -> list[Whole]:
        """The tokens of each answer (of a decoder: with the prompt), and which are scored."""
        if self.is_pair:
            found = []
            eos = self.tokenizer.eos_token_id
            for ids in self.tokenizer(text_target=list(answers), truncation=False, verbose=False)["input_ids"]:
                tokens = np.array(ids if ids[-1:] == [eos] else [*ids, eos], np.int32)
                found.append((tokens, np.ones(len(tokens), bool)))
        else:
            names = [f"example {example.id!r}"] * len(answers)
            tokenized = tokenize_pictured(
                [example] * len(answers), names, self._written(example, answers), self.context
            )
            self.context.count(
                "answers whose first characters share a token with the prompt, which is not scored",
                sum(t.torn for t in tokenized),
            )
            found = [(tokens.ids, tokens.said) for tokens in tokenized]
        return found if end else [(tokens[:-1], counts[:-1]) for tokens, counts in found]

    def _written(self, example: Example, answers: Sequence[str]) -> list[Pieces]:
        """The training text of the example with each answer, in two pieces: prompt and answer."""

        def pieces(answer: str) -> Pieces:
            return self._written_pieces(replace(example, output=answer), self.tokenizer.eos_token)

        first = pieces(answers[0])
        prompt, last = "".join(text for text, _ in first[:-1]), first[-1][0]
        if last.startswith(answers[0]):  # the template does not depend on the answer
            return [[(prompt, False), (answer + last.removeprefix(answers[0]), True)] for answer in answers]
        return [[("".join(text for text, _ in p[:-1]), False), (p[-1][0], True)] for p in map(pieces, answers)]

    def _fitting(self, texts: list[Whole]) -> list[Whole]:
        """The texts of one case; too long prompts lose the same tokens in all of them."""
        length = max(len(tokens) for tokens, _ in texts)
        first, last = self._opening, self._opening + length - self.context.max_length  # tokens to leave out
        if last <= first:
            return texts
        if self.context.truncate != "left" or min(int(np.argmax(counts)) for _, counts in texts) <= last:
            raise ValueError(
                f"a prompt and a candidate's name have {length} tokens together, but data.max_length is "
                f"{self.context.max_length}: raise it, or set data.truncate to left, which removes the beginning of a "
                "prompt (but not all of it)."
            )
        self.context.count("prompts cut for their candidates", 1)
        kept = [np.r_[:first, last : len(tokens)] for tokens, _ in texts]
        if self.context.image_tokens is not None:
            self.context.image_tokens.check_whole(texts[0][0], texts[0][0][kept[0]], "a prompt with an answer")
        return [(tokens[k], counts[k]) for (tokens, counts), k in zip(texts, kept, strict=True)]

    @cached_property
    def _opening(self) -> int:
        """Number of tokens that the tokenizer or the template puts before every text."""
        (tokens,) = tokenize_pieces(self._written(Example(instruction="a"), ["b"]), self.tokenizer)
        return tokens.opening
