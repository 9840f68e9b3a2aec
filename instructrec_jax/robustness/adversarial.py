"""Adversarial search: the fewest swaps of words that make a right answer wrong, within bounds and a budget.

Greedy, word by word, in the order of the words' importance by leaving them out (occlusion); a word becomes the synonym
that lowers the probability of the right answer most, or a misspelling of itself where it has no synonym. As in
TextFooler (Jin et al., 2020, "Is BERT Really Robust?"), without its part-of-speech filter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from instructrec_jax.augmentation.augmenter import random_numbers
from instructrec_jax.augmentation.edits import FUNCTION_WORDS, SHORTEST, Token, joined, typo
from instructrec_jax.augmentation.protection import words_of
from instructrec_jax.augmentation.synonyms import WORDNET, Thesaurus, open_thesaurus
from instructrec_jax.data.augmented import quoted_texts
from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import digest_of_example
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.evaluation.behavior import Attacked
from instructrec_jax.explanation.words import without
from instructrec_jax.robustness.expectations import NotForThisRun, chosen, probabilities
from instructrec_jax.robustness.noise import MISREAD
from instructrec_jax.robustness.running import SHOWN, Examiner, failed_case
from instructrec_jax.robustness.suite import Adversary
from instructrec_jax.robustness.units import is_chinese, units
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.answers import Answer, ChoiceAnswer, LabelAnswer

DRAWS = 4  # misspellings drawn for each that is tried


@dataclass
class Attack:
    """The attack on one example.

    Attributes:
      text_field: of the example: instruction or input.
      right: its label or choice; `probability`: of it, so far.
      order: numbers of tokens, the most important first.
      changed: numbers of the tokens that were replaced.
      calls: texts that the run read.
      answer: to the text as it is so far.
    """

    example: Example
    text_field: str
    front: str
    tokens: list[Token]
    right: str
    before: Answer
    answer: Answer
    probability: float
    order: list[int] = field(default_factory=list)
    changed: set[int] = field(default_factory=set)
    calls: int = 0
    done: bool = False
    flipped: bool = False

    @property
    def text(self) -> str:
        return self.front + joined(self.tokens)

    def with_text(self, text: str) -> Example:
        return replace(self.example, **{self.text_field: text})  # type: ignore[arg-type]

    def swapped(self, number: int, word: str) -> list[Token]:
        def other(token: Token) -> Token:
            return replace(token, text=word) if is_chinese(token) else token.with_core(word)

        return [other(token) if token.number == number else token for token in self.tokens]


class Search:
    """The adversarial search on an examined run. Raises NotForThisRun for a run without labels or choices."""

    def __init__(self, examiner: Examiner, how: Adversary, seed: int) -> None:
        self.examiner, self.how, self.seed = examiner, how, seed
        self.labels = examiner.labels
        self._vectors: dict[int, np.ndarray] = {}  # of the original texts, by their attacks

    @cached_property
    def thesaurus(self) -> Thesaurus | None:
        return open_thesaurus(self.how.thesaurus) if self.how.thesaurus or WORDNET.exists() else None

    @cached_property
    def encode(self) -> Callable[[Sequence[str]], np.ndarray]:
        """Texts -> vectors [texts, width]. Raises NotForThisRun for a network without vectors of texts."""
        run = Run.open(self.how.encoder) if self.how.encoder else self.examiner.run
        try:
            _ = run.embedder
        except ValueError as error:
            raise NotForThisRun(f"{error} Set similarity to 0, or another encoder.") from None
        return run.encode

    def run(self) -> Attacked:
        every = self.examiner.originals
        drawn = np.random.default_rng(self.seed).permutation(len(every))[: self.how.examples]
        examples = [every[number] for number in np.sort(drawn).tolist()]
        with heartbeat(f"adversarial search on {len(examples):,} examples"):
            answers = self.examiner.ask(examples)[0]
            right = [(e, a) for e, a in zip(examples, answers, strict=True) if a is not None and _is_right(e, a)]
            if self.how.similarity and right:
                _ = self.encode  # says what it lacks before the search
            attacks = [attack for e, a in right if (attack := self._begun(e, a)) is not None]
            self._rank(attacks)
            while active := [attack for attack in attacks if not attack.done]:
                self._step(active)
        flipped = [attack for attack in attacks if attack.flipped]
        return {
            "examples": len(examples),
            "right": len(right),
            "flipped": len(flipped),
            "accuracy_before": len(right) / len(examples),
            "accuracy_after": (len(right) - len(flipped)) / len(examples),
            "mean_calls": float(np.mean([attack.calls for attack in attacks])) if attacks else 0.0,
            "budget": self.how.budget,
            "changed": self.how.changed,
            "similarity": self.how.similarity,
            "encoder": self.how.encoder or "the run's own vectors",
            "words": "typing errors" if self.thesaurus is None else "synonyms, else typing errors",
            "failed": [failed_case(a.example, a.before, a.with_text(a.text), a.answer) for a in flipped[:SHOWN]],
        }

    def _begun(self, example: Example, answer: Answer) -> Attack | None:
        """None: an example without a text of its own, such as a conversation."""
        name = "input" if example.input else "instruction"
        text = getattr(example, name)
        if not text:
            return None
        quoted = quoted_texts(example.output)
        words = words_of((*self.labels, *quoted, *example.candidates))
        front, tokens = units(text, words=words, quoted=quoted)
        right = chosen(answer)
        return Attack(example, name, front, tokens, right, answer, answer, probabilities(answer)[right])

    def _rank(self, attacks: Sequence[Attack]) -> None:
        """Sets the order of each attack: what leaving out a word costs; half of the budget at most goes into it."""
        asked: list[tuple[Attack, int, Example]] = []
        for attack in attacks:
            free = [token for token in attack.tokens if token.free and _word(token)]
            for token in free[: self.how.budget // 2]:
                left = without(attack.example, [_word(token)])
                if getattr(left, attack.text_field):
                    asked.append((attack, token.number, left))
        answers = self.examiner.ask([example for _, _, example in asked])[0]
        losses: dict[int, list[tuple[float, int]]] = {id(attack): [] for attack in attacks}
        for (attack, number, _), answer in zip(asked, answers, strict=True):
            attack.calls += 1
            if answer is not None:
                losses[id(attack)].append((probabilities(answer)[attack.right] - attack.probability, number))
        for attack in attacks:
            attack.order = [number for _, number in sorted(losses[id(attack)])]
            attack.done = not attack.order

    def _step(self, active: Sequence[Attack]) -> None:
        """Replaces the next word of each attack by what lowers the right answer's probability most."""
        tried: list[tuple[Attack, int, list[Token]]] = []
        for attack in active:
            words = sum(bool(_word(token)) for token in attack.tokens)
            if not attack.order or len(attack.changed) + 1 > self.how.changed * words:
                attack.done = True
                continue
            number = attack.order.pop(0)
            candidates = self._candidates(attack, number)[: self.how.budget - attack.calls]
            attack.done = attack.calls >= self.how.budget
            tried += [(attack, number, attack.swapped(number, word)) for word in candidates]
        tried = self._similar(tried)
        asked = [attack.with_text(attack.front + joined(tokens)) for attack, _, tokens in tried]
        best: dict[int, tuple[float, Attack, int, list[Token], Answer]] = {}
        for (attack, number, tokens), answer in zip(tried, self.examiner.ask(asked)[0], strict=True):
            attack.calls += 1
            if answer is None:
                continue
            probability = probabilities(answer).get(attack.right, 0.0)
            probability -= 2.0 * (chosen(answer) != attack.right)  # a wrong answer before any other
            if id(attack) not in best or probability < best[id(attack)][0]:
                best[id(attack)] = probability, attack, number, tokens, answer
        for probability, attack, number, tokens, answer in best.values():
            if probability < attack.probability:
                attack.tokens, attack.probability, attack.answer = tokens, probability, answer
                attack.changed.add(number)
                attack.flipped = attack.done = chosen(answer) != attack.right

    def _candidates(self, attack: Attack, number: int) -> list[str]:
        """Replacements of a word: synonyms, else misspellings; of a Chinese character, those that look like it."""
        (token,) = (token for token in attack.tokens if token.number == number)
        word = _word(token)
        if is_chinese(token):
            return [*([MISREAD[word]] if word in MISREAD else []), word * 2][: self.how.candidates]
        lower = word.lower()
        if lower not in FUNCTION_WORDS and self.thesaurus is not None and (found := self.thesaurus.synonyms(lower)):
            cased = [each[0].upper() + each[1:] if word[0].isupper() else each for each in found]
            return cased[: self.how.candidates]
        if len(word) < SHORTEST:
            return []
        draw = random_numbers(str(self.seed), digest_of_example(attack.example).hex(), str(number))
        drawn = dict.fromkeys(typo(word, draw) for _ in range(DRAWS * self.how.candidates))
        return [each for each in drawn if each != word][: self.how.candidates]

    def _similar(self, tried: list[tuple[Attack, int, list[Token]]]) -> list[tuple[Attack, int, list[Token]]]:
        """Those whose vector's cosine with that of the original text reaches the bound."""
        if not self.how.similarity or not tried:
            return tried
        new = {id(attack): attack.example for attack, _, _ in tried if id(attack) not in self._vectors}
        texts = [getattr(example, "input" if example.input else "instruction") for example in new.values()]
        texts += [attack.front + joined(tokens) for attack, _, tokens in tried]
        vectors = np.asarray(self.encode(texts), np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self._vectors.update(zip(new, vectors[: len(new)], strict=True))
        cosines = [self._vectors[id(each[0])] @ v for each, v in zip(tried, vectors[len(new) :], strict=True)]
        return [each for each, cosine in zip(tried, cosines, strict=True) if cosine >= self.how.similarity]


def _word(token: Token) -> str:
    return token.text if is_chinese(token) else token.core


def _is_right(example: Example, answer: Answer) -> bool:
    """Raises NotForThisRun for answers that are no label and no choice."""
    if not isinstance(answer, LabelAnswer | ChoiceAnswer):
        raise NotForThisRun(f"the search is for labels and choices, not for a {type(answer).__name__}.")
    return chosen(answer) == example.output
