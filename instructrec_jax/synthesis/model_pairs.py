"""Pairs that a language model writes: its prompt, the form of its answer, and the training examples of such a model.

A model is asked for one pair a line: the question, a tab, and the answer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.example import Example
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.metrics.language import has_cjk, units
from instructrec_jax.synthesis.grounding import Check, Pair, plain
from instructrec_jax.synthesis.passages import Language, Passage

ASK: Mapping[Language, str] = {
    "en": (
        "Write questions about the text, and their answers. Write one pair a line: the question, a tab, the answer. "
        "Use words of the text in the answers."
    ),
    "zh": "请根据文章写出问题和答案。每行一对：先写问题，再写一个制表符，最后写答案。答案要使用文章中的词语。",
}
MODEL = "model"  # the rule of such pairs
LONGEST = 60  # words of a question or an answer, three times as many characters in Chinese
NO_TAB = "no question, tab and answer"
TOO_LONG = "the line is too long"
CUT_OFF = "the last line was cut off"
COPIED = "the question repeats the instruction"
YES_NO_ANSWER = "a yes or no that cannot be checked"
_YES_NO = {"yes", "no", "true", "false", "是", "否", "是的", "不是", "对", "错", "不对", "正确", "错误"}
_SUMMARIES = ("summar", "main idea", "mainly about", "概括", "总结", "摘要", "主要内容", "主要讲")


def synthesizer_prompt(passage: Passage) -> Example:
    """What the model is asked about an English or Chinese passage."""
    assert passage.language is not None
    return Example(instruction=ASK[passage.language], input=passage.text)


def written_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Questions and answers in the form that `read_pairs` reads: the target of a model that is trained for this."""
    return "\n".join(f"{' '.join(question.split())}\t{' '.join(answer.split())}" for question, answer in pairs)


def read_pairs(text: str, *, finished: bool = True) -> tuple[list[Pair], Counter[str]]:
    """The pairs of an answer, and how many of its lines are none, by reason. Blank lines count as nothing.

    Args:
      finished: whether the answer ended by itself; else its last line is left out.
    """
    found: list[Pair] = []
    dropped: Counter[str] = Counter()
    lines = text.splitlines()
    if not finished and lines:
        lines.pop()
        dropped[CUT_OFF] += 1
    for line in filter(str.strip, lines):
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not all(parts):
            dropped[NO_TAB] += 1
            continue
        question, answer = parts
        if reason := _problem(question, answer):
            dropped[reason] += 1
        else:
            check: Check = "summary" if any(word in plain(question) for word in _SUMMARIES) else "in_text"
            found.append(Pair(MODEL, question, answer, check))
    return found, dropped


def _problem(question: str, answer: str) -> str:
    if any(units(each) > LONGEST * (3 if has_cjk(each) else 1) for each in (question, answer)):
        return TOO_LONG
    if plain(answer).strip(".!。！ ") in _YES_NO:
        return YES_NO_ANSWER
    return COPIED if plain(question) in map(plain, ASK.values()) else ""


@dataclass
class ModelSynthesizer:
    """Pairs by a run or a HuggingFace folder of a language model. Raises ValueError for a run that writes no text."""

    path: str | Path
    max_new_tokens: int = 256
    model: LanguageModel = field(init=False)

    def __post_init__(self) -> None:
        self.model = LanguageModel(self.path)

    def __call__(self, passages: Sequence[Passage]) -> list[tuple[list[Pair], Counter[str]]]:
        """For each English or Chinese passage its pairs, and how many lines were none, by reason."""
        prompts = [synthesizer_prompt(each) for each in passages]
        names = [f"passage {each.number + 1} of {each.source}" for each in passages]
        config = GenerationConfig(max_new_tokens=self.max_new_tokens)
        answers = self.model.generate(prompts, config, names=names, progress=True)
        return [read_pairs(answer.text, finished=answer.finish != "length") for answer in answers]
