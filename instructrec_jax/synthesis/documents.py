"""Training examples of pairs: one of each, or one document of a passage and a chain of its pairs."""

from collections.abc import Sequence

from instructrec_jax.augmentation.augmenter import random_numbers
from instructrec_jax.data.example import Example, Message
from instructrec_jax.synthesis.grounding import Pair
from instructrec_jax.synthesis.passages import Language, Passage

MADE_FROM, RULE = "made_from", "rule"  # in `Example.origin`
LAYOUTS: dict[Language, tuple[str, ...]] = {
    "en": ("Question: {}\nAnswer: {}", "Q: {}\nA: {}", "{}\n{}"),
    "zh": ("问题：{}\n答案：{}", "问：{}\n答：{}", "{}\n{}"),
}


def pair_example(pair: Pair, passage: Passage) -> Example:
    """An instruction about the passage as its input, with the answer."""
    text = None if pair.alone else passage.text
    return Example(instruction=pair.instruction, input=text, output=pair.answer, origin=_origin(passage, [pair]))


def document(passage: Passage, pairs: Sequence[Pair], seed: int) -> Example:
    """The passage and its pairs below it, in one layout: one turn of the assistant, so every token is trained on."""
    parts = [passage.text]
    if pairs:
        assert passage.language is not None
        layouts = LAYOUTS[passage.language]
        layout = layouts[int(random_numbers(str(seed), passage.text, "layout")() * len(layouts))]
        before, between, after = layout.split("{}")
        parts += [f"{before}{pair.instruction}{between}{pair.answer}{after}" for pair in pairs]
    return Example(instruction="", messages=(Message("assistant", "\n\n".join(parts)),), origin=_origin(passage, pairs))


def chain(pairs: Sequence[Pair], length: int, passage: Passage, seed: int) -> list[Pair]:
    """At most `length` of the pairs, drawn so that every rule has had its turn before one has a second."""
    draw = random_numbers(str(seed), passage.text, "chain")
    met: dict[str, int] = {}
    ranked = []
    for number, pair in enumerate(pairs):
        turn = met[pair.rule] = met.get(pair.rule, -1) + 1
        ranked.append((turn, draw(), number))
    return [pairs[number] for _, _, number in sorted(ranked)[:length]]


def gets_pairs(passage: Passage, share: float, seed: int) -> bool:
    """Whether this is one of the passages that get pairs: a function of (text, seed), with probability `share`."""
    return random_numbers(str(seed), passage.text, "share")() < share


def _origin(passage: Passage, pairs: Sequence[Pair]) -> dict[str, str]:
    place = f"{passage.source}, passage {passage.number + 1}"
    return {MADE_FROM: place} | ({RULE: ", ".join(pair.rule for pair in pairs)} if pairs else {})
