"""data.train[].augment: what is changed in an example, what goes with it, and the source of all versions."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.augmented import METHODS, AugmentedSource, ExampleAugmenter, augmented, check_methods
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.sources import ListSource
from instructrec_jax.tasks.task_config import MultitaskConfig, SubtaskConfig, TaskConfig

HARD = AugmentConfig(delete=0.3, swap=0.3, typos=0.5, copies=20)


def task(name: str) -> TaskConfig:
    return TaskConfig.get_known_choices()[name]()


def copies(example: Example, config: AugmentConfig = HARD, **how: Any) -> list[Example]:
    augment = ExampleAugmenter(config, 7, **how)
    return [augment(example, copy) for copy in range(1, config.copies + 1)]


def test_only_the_text_changes_and_the_origin_says_where_it_came_from() -> None:
    example = Example(
        instruction="Answer the question about the text.",
        input="the old book was about a city that nobody had seen before",
        output="seen",
        candidates=("city", "item-3"),
        history=("item-1",),
        system="be brief and polite",
        id="e1",
        origin={"user": "u"},
    )
    made = copies(example)
    assert len({each.input for each in made}) > 15
    for each in made:
        words = (each.input or "").split()
        assert {"seen", "city", "nobody"} <= set(words)  # of the target, of the candidates, a negation
        assert each.origin["made_from"] == "e1" and each.origin["user"] == "u"
        assert set(each.origin[METHODS].split(", ")) <= {"delete", "swap", "typos"}
        assert replace(each, input=example.input, origin=example.origin) == example
    assert [each.id for each in made] == ["e1"] * 20


def test_the_place_says_which_copy() -> None:
    (made,) = copies(Example(instruction="an old book", where="a.csv, line 3"), replace(HARD, copies=1))
    assert made.where == "a.csv, line 3, copy 1" and made.origin["made_from"] == "a.csv, line 3"


def test_instructions_without_an_input_and_turns_of_users_change() -> None:
    turns = (Message("user", "tell something about this"), Message("assistant", "which one would it be"))
    made = copies(Example(instruction="", messages=(*turns, Message("user", "that with many pages")), output="x"))
    assert len({each.messages[0].content for each in made}) > 5 and len({each.messages[2].content for each in made}) > 5
    assert {each.messages[1].content for each in made} == {turns[1].content}
    assert len({each.instruction for each in copies(Example(instruction="what is that old book about"))}) > 10


def test_label_words_stay() -> None:
    example = Example(instruction="these cards were declined again today")
    assert all("cards" in e.instruction.split() for e in copies(example, labels=("declined_cards", "other")))
    assert not all("cards" in e.instruction.split() for e in copies(example))


def test_answers_stay_in_the_text_and_their_place_moves_along() -> None:
    text = "  the name of that old city is big water, and big water is what people call it now"
    place = text.rindex("big water")
    example = Example(instruction="which name", input=text, output="big water", origin={"answer_start": str(place)})
    made = copies(example)
    for each in made:
        start = int(each.origin["answer_start"])
        assert each.input is not None and each.input.count("big water") == 2
        assert start == each.input.rindex("big water")  # the second one, as before
    assert len({each.origin["answer_start"] for each in made}) > 3


TAGGED = Example(
    instruction="",
    input="we saw the new bridge in great old york today",
    output=("O", "O", "O", "O", "O", "O", "B-PLACE", "I-PLACE", "I-PLACE", "O"),
)


def tagged(task: str) -> bool:
    return True


def test_tags_go_with_their_words_and_spans_stay_whole() -> None:
    made = copies(TAGGED, tags=tagged)
    assert len({each.input for each in made}) > 15
    for each in made:
        words, tags = (each.input or "").split(), each.output
        assert isinstance(tags, tuple) and len(tags) == len(words)
        begin = tags.index("B-PLACE")
        assert tags[begin : begin + 3] == ("B-PLACE", "I-PLACE", "I-PLACE") and set(tags[begin + 3 :]) <= {"O"}
        assert words[begin : begin + 3] == ["great", "old", "york"]


def test_tags_of_listed_words() -> None:
    words = ("we", "new york", "", "saw", "that")
    example = Example(instruction="", input="we new york saw that", words=words, output=("a", "b", "c", "d", "e"))
    for each in copies(example, replace(HARD, typos=0.0), tags=tagged):
        assert dict(zip(each.output, each.words, strict=True)).items() <= dict(zip("abcde", words, strict=True)).items()
        assert each.words[each.output.index("b")] == "new york"
    wrong = replace(TAGGED, output=("O",))
    assert all(each.input == TAGGED.input for each in copies(wrong, tags=tagged))  # the task says what is wrong


def texts(count: int) -> ListSource:
    return ListSource([Example(instruction=f"an old book about the sea number {n}", id=f"e{n}") for n in range(count)])


def test_a_source_has_each_example_and_its_copies() -> None:
    plain, config = texts(5), AugmentConfig(swap=0.5, copies=2)
    source = AugmentedSource(plain, ExampleAugmenter(config, 7))
    assert len(source) == 15 and (source.name, source.task, source.versions) == ("examples", "", 3)
    assert [source[3 * n] for n in range(5)] == plain.examples
    assert source.digest(6) == plain.digest(2)
    assert {source[n].origin.get("made_from") for n in (7, 8)} == {"e2"}
    again = pickle.loads(pickle.dumps(source))
    assert [again[n] for n in range(15)] == [source[n] for n in range(15)]
    assert len({source.digest(n) for n in range(15)}) == 15


def test_the_fingerprint_hangs_on_what_the_copies_hang_on(tmp_path: Path) -> None:
    def fingerprint(seed: int = 7, labels: tuple[str, ...] = (), **settings: Any) -> str:
        config = AugmentConfig(**({"swap": 0.5} | settings))
        return AugmentedSource(texts(3), ExampleAugmenter(config, seed, labels)).fingerprint

    others = [fingerprint(8), fingerprint(swap=0.4), fingerprint(copies=2), fingerprint(labels=("sea",))]
    assert len({fingerprint(), *others, texts(3).fingerprint}) == 6 and fingerprint() == fingerprint()


def test_copies_hang_on_the_example_and_not_on_its_place() -> None:
    how = ExampleAugmenter(HARD, 7)
    forward, backward = texts(4), ListSource(texts(4).examples[::-1])
    one, other = AugmentedSource(forward, how), AugmentedSource(backward, how)
    assert [one[21 * 1 + n] for n in range(21)] == [other[21 * 2 + n] for n in range(21)]


def allowed(name: str) -> Any:
    return task(name).augmentations


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("translation", "delete", "cannot take delete.*; it takes synonyms, typos, paraphrase"),
        ("span", "paraphrase", "cannot take paraphrase"),
        ("sequence", "typos", "cannot take typos.*; it takes no augmentation"),
    ],
)
def test_a_method_that_the_task_cannot_take_is_named(name: str, method: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.train\[1\]\.augment\.{method}: the task {message}"):
        check_methods(texts(1).examples, [method], allowed(name), "data.train[1].augment.")


def test_tasks_of_a_multitask_run_by_name() -> None:
    both = MultitaskConfig([SubtaskConfig("a", task("classification")), SubtaskConfig("b", task("translation"))])
    assert "delete" in both.augmentations("a") and "delete" not in both.augmentations("b")
    tagging = MultitaskConfig([SubtaskConfig("a", task("token_classification"))])
    assert tagging.has_tags("a") and not both.has_tags("a")
    example = Example(instruction="x", task="b")
    with pytest.raises(ValueError, match="the task b cannot take delete"):
        check_methods([example], ["delete"], both.augmentations, "augment.")


def test_a_source_that_nothing_changes_in_is_refused() -> None:
    names = ListSource([Example(instruction="Ann 12"), Example(instruction="这部电影很好看")])
    with pytest.raises(
        ValueError, match=r"augment changes none of the first 2 texts of examples: their words are names"
    ):
        augmented(names, ExampleAugmenter(HARD, 7), allowed("classification"), "augment")
    assert len(augmented(texts(2), ExampleAugmenter(HARD, 7), allowed("classification"), "augment")) == 42


def test_no_number_is_lost_in_any_copy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        numbers = [str(rng.integers(100)) for _ in range(3)]
        text = " ".join(f"we paid {number} euros," for number in numbers)
        for each in copies(Example(instruction=text), replace(HARD, copies=3)):
            assert [word for word in each.instruction.split() if word.isdecimal()] == numbers
