"""The adversarial search: it flips answers within its bounds, and counts what it reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_thesauri import write_wordnet

from instructrec_jax.data.example import Example
from instructrec_jax.robustness import adversarial
from instructrec_jax.robustness.adversarial import Search
from instructrec_jax.robustness.expectations import NotForThisRun
from instructrec_jax.robustness.suite import Adversary
from instructrec_jax.tasks.answers import Answer, LabelAnswer, NumberAnswer

BAD = frozenset(["dull", "boring", "awful"])


class Words:
    """In place of an examined run: the share of known good words is the probability of "good"; it counts texts."""

    def __init__(self, texts: list[str], vector: float = 1.0) -> None:
        self.originals = [Example(instruction=text, output="good", id=str(n)) for n, text in enumerate(texts)]
        self.run, self.vector, self.read = self, vector, 0
        self.embedder = self.encode
        self.labels = ("good", "bad")

    def ask(self, examples: list[Example]) -> tuple[list[Answer | None], dict[int, str]]:
        self.read += len(examples)
        found: list[Answer | None] = []
        for example in examples:
            words = example.instruction.replace(".", "").split()
            share = sum(word in ("fine", "lovely", "splendid") for word in words) / max(len(words), 1)
            found.append(LabelAnswer("good" if share > 0.2 else "bad", {"good": share, "bad": 1 - share}))
        return found, {}

    def encode(self, texts: list[str]) -> np.ndarray:
        """The texts of `originals` have one vector, all others one at the cosine `vector`."""
        known = {example.instruction for example in self.originals}
        other = [self.vector, np.sqrt(1 - self.vector**2)]
        return np.array([[1.0, 0.0] if text in known else other for text in texts], np.float32)


def searched(run: Words, **bounds: Any) -> Any:
    how = Adversary(**{"changed": 0.5, "budget": 100, "similarity": 0.0, "examples": 10, **bounds})
    return Search(run, how, 0).run()  # type: ignore[arg-type]


TEXTS = ["a lovely splendid film", "a dull film about music", "such a splendid story"]


def test_important_words_are_misspelled_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "WORDNET", Path("/nowhere"))
    run = Words(TEXTS)
    found = searched(run)
    assert found["examples"] == 3 and found["right"] == 2 and found["accuracy_before"] == pytest.approx(2 / 3)
    assert found["flipped"] == 2 and found["accuracy_after"] == 0.0 and found["words"] == "typing errors"
    after = found["failed"][0]["after"].split()
    assert (
        after[0] == "a"
        and after[3] == "film"
        and sum(a != b for a, b in zip(after, TEXTS[0].split(), strict=True)) == 2
    )
    assert after[1] != "lovely" and after[2] != "splendid"
    assert found["mean_calls"] * 2 + 3 == run.read  # the first three are of no attack
    assert found == searched(Words(TEXTS))


def test_synonyms_come_before_misspellings(tmp_path: Path) -> None:
    run = Words(["a fine old film", "fine well"])
    folder = write_wordnet(tmp_path / "wordnet")
    found = searched(run, thesaurus=str(folder), changed=0.25)
    assert found["words"].startswith("synonyms")
    search = Search(run, Adversary(thesaurus=str(folder)), 0)  # type: ignore[arg-type]
    attack = search._begun(Example(instruction="A film.", output="bad"), LabelAnswer("bad", {"good": 0.0, "bad": 1.0}))
    assert attack is not None and search._candidates(attack, 1) == ["movie"]
    swapped = "".join(token.text + token.space for token in attack.swapped(1, "movie"))
    assert swapped == "A movie."


@pytest.mark.parametrize(
    ("bounds", "flipped"), [({"changed": 0.2}, 0), ({"budget": 2}, 0), ({"budget": 9}, 1), ({"similarity": 0.99}, 0)]
)
def test_bounds_hold(bounds: dict[str, Any], flipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "WORDNET", Path("/nowhere"))
    run = Words(["such a splendid story"], vector=0.9)
    found = searched(run, **bounds)
    assert found["flipped"] == flipped and found["mean_calls"] <= found["budget"]
    assert searched(Words(["such a splendid story"], vector=0.995), similarity=0.99)["flipped"] == 1


def test_chinese_characters_are_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "WORDNET", Path("/nowhere"))
    search = Search(Words([]), Adversary(), 0)  # type: ignore[arg-type]
    example = Example(instruction="大家喜欢", output="good")
    attack = search._begun(example, LabelAnswer("good", {"good": 1.0, "bad": 0.0}))
    assert attack is not None and search._candidates(attack, 0) == ["太", "大大"]
    assert attack.with_text("x").instruction == "x" and attack.text == "大家喜欢"


class Silent(Words):
    """A run without vectors."""

    @property
    def embedder(self) -> Any:
        raise ValueError("it has no vectors.")

    @embedder.setter
    def embedder(self, value: object) -> None:
        pass


def test_a_network_without_vectors_is_named() -> None:
    with pytest.raises(NotForThisRun, match="it has no vectors. Set similarity to 0, or another encoder"):
        searched(Silent(TEXTS), similarity=0.5)
    assert searched(Silent(TEXTS))["right"] == 2


def test_numbers_are_not_attacked() -> None:
    run = Words(TEXTS)
    run.ask = lambda examples: ([NumberAnswer(1.0)] * len(examples), {})  # type: ignore[method-assign]
    with pytest.raises(NotForThisRun, match="labels and choices, not for a NumberAnswer"):
        searched(run)
    run = Words(TEXTS)
    run.originals = [replace(example, output="bad") for example in run.originals[:1]]
    assert searched(run)["mean_calls"] == 0.0  # nothing is right
