"""Ranking with a language model, by the likelihood of each candidate's name as the answer to the instruction.

    likelihood   Σ log p(token of the name | instruction, tokens before) / tokens ** alpha
    choice       the same, after the instruction lists the candidates
    yes_no       log p(yes) − log p(no), asked separately for each candidate
    pairwise     wins in a tournament of all pairs, each asked in both orders

Training uses the same questions: the answer is the positive item's name, yes or no, or the better item of a pair.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.data.batch import BatchTexts, Text, end_to_end
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import question, render
from instructrec_jax.inference.likelihood import normalized
from instructrec_jax.tasks.base import Encoded, Task, TaskContext, name_of
from instructrec_jax.tasks.generation.answer_likelihood import LikelihoodTask
from instructrec_jax.tasks.generation.language_model import LanguageModelTask
from instructrec_jax.tasks.objective import Choice, Objective, Reading
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.ranking_config import LanguageModelRankingConfig
from instructrec_jax.tasks.ranking.ranking_task import Target
from instructrec_jax.tasks.ranking.reranker import RerankingTask
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.targets import TokenLabels

MOST_PAIRED = 20  # maximum candidates of a tournament, which asks about every pair twice
ANSWERS = 4096  # answers tokenized and scored at a time
WRITTEN = ("pointwise", "request", "preference", "relatedness")  # forms of examples whose output is not an item

QUESTIONS = {
    "choice": "Choose one of these:\n{candidates}",
    "yes_no": "Is {candidate} the right choice? Answer {yes} or {no}.",
    "pairwise": "Which one is the better choice: {first} or {second}?",
}
SLOTS = {
    "choice": {"candidates"},
    "yes_no": {"candidate", "yes", "no"},
    "pairwise": {"first", "second"},
}


@storable
@dataclass(frozen=True)
class NamedTarget(Target):
    """A target with the next-token labels of the example's text (see `NextTokens`)."""

    labels: np.ndarray
    supervised: np.ndarray


class LanguageModelRankingTask(RerankingTask, LikelihoodTask):
    """Trained as a language model on the names of positive items; evaluated as a reranker.

    Prompt and name are tokenized as one text, as in training (see `data.prompts.tokenize_pieces`); a token with
    characters of both belongs to the prompt and is not scored. Names are `Catalogue.name`, stripped.
    """

    greater_is_better = True
    gathers_alone = False  # candidates are drawn for each batch
    outputs_are = "words"
    judged = Task.judged  # items are scored, not tokens

    def __init__(self, config: LanguageModelRankingConfig, context: TaskContext):
        LanguageModelTask.__init__(self, config, context)
        RerankingTask.__init__(self, config, context)
        if context.truncate == "right" and not (self.is_pair and config.form == "likelihood"):
            raise ValueError(
                "data.truncate right would cut the question at the end of a text: set it to left, drop or error."
            )
        if not np.isfinite(config.alpha):
            raise ValueError(f"task.alpha should be a finite number (1: mean per token), but is {config.alpha}.")
        if config.form == "likelihood" and config.question is not None:
            raise ValueError("task.question is for task.form choice, yes_no and pairwise: leave it out.")
        if config.form != "likelihood":
            self._check_question()
        if config.form == "yes_no":
            self._check_yes_no()
        self.names = [self.catalogue.name(number).strip() for number in range(len(self.catalogue))]
        ids = self.tokenizer(self.names, add_special_tokens=False, verbose=False)["input_ids"]
        self._lengths = np.array([len(each) for each in ids])
        self._longest: list[int] = np.argsort(-self._lengths, kind="stable").tolist()
        most = self._lengths.max() + 1  # with the end token
        if self.is_pair and most > self._longest_target:
            raise ValueError(
                f"the name of item {self.catalogue.ids[self._longest[0]]!r} has {most} tokens with its end token, but "
                f"task.max_target_length is {self._longest_target}: raise it."
            )

    def _check_question(self) -> None:
        slots = SLOTS[self.config.form]
        try:
            found = {name for _, name, _, _ in string.Formatter().parse(self._question) if name is not None}
        except ValueError as error:
            raise ValueError(f"task.question {self._question!r} is not a format string: {error}.") from error
        needed = slots - {"yes", "no"}
        if not needed <= found <= slots:
            listed = ", ".join("{" + slot + "}" for slot in sorted(slots))
            raise ValueError(f"task.question {self._question!r} should have the placeholders {listed}, and no others.")

    def _check_yes_no(self) -> None:
        first = []
        for word in (self.config.yes, self.config.no):
            if not word.strip():
                raise ValueError("task.yes and task.no should not be empty.")
            tokens, counts = self._answers(Example(instruction="Is it?"), [word])[0]
            first.append(tokens[np.argmax(counts)])
        if first[0] == first[1]:
            raise ValueError(
                f"task.yes {self.config.yes!r} and task.no {self.config.no!r} start with the same token, by which "
                "their likelihoods are compared: choose other words."
            )

    @property
    def _question(self) -> str:
        return self.config.question or QUESTIONS[self.config.form]

    explained_by = "occlusion"

    def objectives(self, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
        """The score of one item, named with `choice.target`, less that of another; by the words of the question."""

        def named() -> int:
            raise ValueError("the run ranks given candidates only: name the item to explain with --target.")

        target, against = items = self.explained_items(choice, named)
        if against is None and self.config.form in ("choice", "pairwise"):
            raise ValueError(f"task.form {self.config.form} compares items: name another one with --against.")
        chosen = np.array([target] if against is None else [target, against])

        def outputs(predict: Predict, some: Sequence[Encoded]) -> np.ndarray:
            return self.score_candidates(predict, some, np.tile(chosen, (len(some), 1)))

        signs = np.array([1, -1], np.float32)[: len(chosen)]
        said = replace(self.objective(items, signs, "score"), outputs=outputs)
        return [replace(said, readings=lambda e: (Reading.whole(render(question(e))),))]

    # -------------------------------------------------------------- questions

    def _ask(self, example: Example, **said: str) -> Example:
        """The example without its answer, with the form's question appended."""
        asked = question(example)
        if not said:
            return asked
        if asked.messages:
            raise ValueError(
                f"example {example.id!r} is a conversation, but task.form {self.config.form} needs an "
                "instruction: use likelihood."
            )
        words = self._question.format(**said)
        if asked.input:
            return replace(asked, input=f"{asked.input}\n{words}")
        return replace(asked, instruction=f"{asked.instruction}\n{words}")

    def _choice(self, example: Example, items: Sequence[int]) -> Example:
        listed = "\n".join(f"- {name}" for name in dict.fromkeys(self.names[item] for item in items))
        return self._ask(example, candidates=listed)

    def _yes_no(self, example: Example, item: int) -> Example:
        return self._ask(example, candidate=self.names[item], yes=self.config.yes, no=self.config.no)

    def _pair(self, example: Example, first: int, second: int) -> Example:
        return self._ask(example, first=self.names[first], second=self.names[second])

    # -------------------------------------------------------------- training

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The training text of each example; where `gather` draws the candidates, the longest possible one."""
        targets, positives, trained = [], [], []
        rng = np.random.default_rng(self.context.seed)
        nothing = np.empty(0, np.int32)
        for number, example in enumerate(examples):
            name = name_of(example, number)
            if example.origin.get("form") in WRITTEN:  # for training only, not for ranking
                target, item, asked = Target(nothing, nothing), -1, example
            else:
                target = self.target(example, name)
                item = int(rng.choice(target.items))
                asked = self._longest_question(example, item)
            targets.append(target)
            positives.append(item)
            trained.append(replace(asked, id=example.id or str(number)))
        place = {id(example): number for number, example in enumerate(trained)}
        encoded = []
        for e in LanguageModelTask.encode(self, trained):
            number = place[id(e.example)]
            if positives[number] < 0 or self._has_room(e, positives[number]):
                items, history = targets[number].items, targets[number].history
                target = NamedTarget(items, history, e.target.labels, e.target.supervised)
                encoded.append(Encoded(e.text, target, examples[number]))
        return encoded

    def _longest_question(self, example: Example, positive: int) -> Example:
        longest, config = self._longest, self.config
        if config.form == "likelihood":
            return replace(self._ask(example), output=self.names[positive])
        if config.form == "choice":
            return replace(self._choice(example, longest[: 1 + config.negatives]), output=self.names[longest[0]])
        if config.form == "yes_no":
            words = sorted([config.yes, config.no], key=lambda word: len(self.tokenizer(word)["input_ids"]))
            return replace(self._yes_no(example, longest[0]), output=words[-1])
        return replace(self._pair(example, longest[0], longest[-1]), output=self.names[longest[0]])

    def _has_room(self, e: Encoded, positive: int) -> bool:
        """Whether a decoder's text has room for the longest name in place of its own; False: drop the example."""
        if self.is_pair or self.config.form != "likelihood":
            return True
        length = len(e.text.tokens) + int(self._lengths.max() - self._lengths[positive])
        if length <= self.context.max_length:
            return True
        if self.context.truncate == "error":
            raise ValueError(
                f"example {e.example.id!r} has {length} tokens with the longest name of the catalogue as its answer, "
                f"but data.max_length is {self.context.max_length}. Raise it, or set data.truncate to left or drop."
            )
        self.context.count("prompts dropped" if self.context.truncate == "drop" else "prompts cut", 1)
        return self.context.truncate == "left"

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        """Questions about drawn candidates are made for each batch; other examples are used as encoded."""
        trained: list[tuple[Text, np.ndarray, np.ndarray]] = []
        asked: list[Example] = []
        for e in encoded:
            if self.config.form == "likelihood" or not len(e.target.items):
                trained.append((e.text, e.target.labels, e.target.supervised))
            else:
                asked += self._draw(e, rng)
        if asked:
            drawn = LanguageModelTask.encode(self, asked)
            trained += [(e.text, e.target.labels, e.target.supervised) for e in drawn]
        texts, labels, supervised = (list(column) for column in zip(*trained, strict=True))
        return BatchTexts(texts, TokenLabels(end_to_end(labels), end_to_end(supervised)))

    def _draw(self, e: Encoded, rng: np.random.Generator) -> list[Example]:
        positive, negatives = int(rng.choice(e.target.items)), [int(item) for item in self.negatives(e, rng)]
        if self.config.form == "choice":
            listed = [int(item) for item in rng.permutation([positive, *negatives])]
            return [replace(self._choice(e.example, listed), output=self.names[positive])]
        if self.config.form == "yes_no":
            right = replace(self._yes_no(e.example, positive), output=self.config.yes)
            return [right, *(replace(self._yes_no(e.example, item), output=self.config.no) for item in negatives)]
        asked = []
        for item in negatives:
            pair = (positive, item) if rng.random() < 0.5 else (item, positive)
            asked.append(replace(self._pair(e.example, *pair), output=self.names[positive]))
        return asked

    # -------------------------------------------------------------- scores

    def check(self, encoded: Sequence[Encoded]) -> None:
        for number, e in enumerate(encoded):
            if not len(e.target.items):
                raise ValueError(
                    f"example {e.example.id or number!r} has the form {e.example.origin['form']}, whose answer is not "
                    "an item: it is for training only. Leave it out of data.validation and data.test."
                )
        super().check(encoded)
        for candidates in self._asked(encoded)[1]:
            for e, row in zip(encoded, candidates.items, strict=True):
                self._check_list(e.example, list(dict.fromkeys([*e.target.items.tolist(), *row[row >= 0].tolist()])))

    def _check_list(self, example: Example, items: list[int]) -> None:
        """Raises ValueError for too many candidates, or candidates that are too long beside the prompt."""
        form, names = self.config.form, [self.names[item] for item in items]
        if form == "likelihood":
            self.check_question(self._ask(example), names)
        elif form == "choice":
            self.check_question(self._choice(example, items), names)
        elif form == "yes_no":
            for item in items:
                self.check_question(self._yes_no(example, item), [self.config.yes, self.config.no])
        else:
            _check_paired(items)
            # the longest pair, or nearly so
            a, b = sorted(items, key=lambda item: len(self.names[item]))[-2:] if len(items) > 1 else (items[0],) * 2
            self.check_question(self._pair(example, a, b), [self.names[a], self.names[b]])

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        self.check(encoded)
        return super().score(predict, encoded)

    def score_candidates(self, predict: Predict, encoded: Sequence[Encoded], candidates: np.ndarray) -> np.ndarray:
        found = np.zeros(candidates.shape, np.float32)
        per_item = {"likelihood": 1, "choice": 1, "yes_no": 2, "pairwise": 2 * MOST_PAIRED}[self.config.form]
        cases = max(1, ANSWERS // max(1, candidates.shape[1] * per_item))
        for start in range(0, len(encoded), cases):
            block = range(start, min(start + cases, len(encoded)))
            # a list may repeat an item
            listed = [list(dict.fromkeys(candidates[case].tolist())) for case in block]
            scores = self._score_lists(predict, [encoded[case].example for case in block], listed)
            for case, items, values in zip(block, listed, scores, strict=True):
                place = {item: number for number, item in enumerate(items)}
                found[case] = values[[place[item] for item in candidates[case].tolist()]]
        return found

    def _score_lists(
        self, predict: Predict, examples: Sequence[Example], listed: Sequence[list[int]]
    ) -> list[np.ndarray]:
        """float64 [items] for each example."""
        form, names = self.config.form, self.names
        pairs = list(zip(examples, listed, strict=True))
        if form in ("likelihood", "choice"):
            ask = (lambda e, items: self._ask(e)) if form == "likelihood" else self._choice
            asked = [[(ask(e, items), [names[item] for item in items])] for e, items in pairs]
            found = self.log_likelihoods(predict, asked, end=self.config.end_token)
            return [normalized(values[0], self.config.alpha) for values in found]
        if form == "yes_no":
            words = [self.config.yes, self.config.no]
            asked = [[(self._yes_no(e, item), words) for item in items] for e, items in pairs]
            found = self.log_likelihoods(predict, asked, end=False)
            return [np.array([each[0, 0] - each[1, 0] for each in values]) for values in found]
        for items in listed:
            _check_paired(items)
        asked = [
            [(self._pair(e, a, b), [names[a], names[b]]) for a in items for b in items if a != b] for e, items in pairs
        ]
        found = self.log_likelihoods(predict, asked, end=self.config.end_token)
        return [
            tournament(len(items), [normalized(each, self.config.alpha) for each in values])
            for (_, items), values in zip(pairs, found, strict=True)
        ]


def _check_paired(items: Sequence[int]) -> None:
    if len(items) > MOST_PAIRED:
        raise ValueError(
            f"task.form pairwise compares every pair twice, for up to {MOST_PAIRED} candidates, but there are "
            f"{len(items)}: rank fewer (protocol uni9, or two stages with a smaller k), or use likelihood or yes_no."
        )


def tournament(size: int, scores: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [size]: each candidate's Copeland score (1951) against all others.

    The probability that a beats b is the softmax of their two scores, averaged over both orders of the question, so
    that position bias cancels. A win counts 1, a draw ½; half of the mean probability is added as a tie-breaker.

    Args:
      scores: float [2] (first, second) for each of the ordered pairs (0, 1), (0, 2), ..., (1, 0), ...
    """
    ahead = np.zeros((size, size))
    pairs = [(a, b) for a in range(size) for b in range(size) if a != b]
    for (a, b), (first, second) in zip(pairs, scores, strict=True):
        chance = 0.5 * (1 + np.tanh((first - second) / 2))
        ahead[a, b] += chance / 2
        ahead[b, a] += (1 - chance) / 2
    wins = (ahead > ahead.T) + 0.5 * (ahead == ahead.T) - 0.5 * np.eye(size)
    return wins.sum(1) + ahead.sum(1) / max(1, size - 1) / 2
