"""Perturbed examples: options, protection of targets, tags that go with their words, and lists of items."""

from dataclasses import replace

import pytest

from instructrec_jax.data.example import Example, Message
from instructrec_jax.robustness.perturbations import LISTS, NAMES, NOISE, OTHERS, Perturbation, World

TEXT = Example(
    instruction="Is it good?",
    input="Mary is not in Paris or Rome, but the film is remarkably good in 2007.",
    output="Paris",
)
ITEMS = Example(instruction="", history=tuple(f"i{n}" for n in range(10)), candidates=("a", "b", "c"), output="i11")
EN = World("en", ("good", "bad"), by_popularity=lambda: tuple(f"i{n}" for n in range(30)))
TAGGED = World("en", is_tagged=lambda task: True)
SWAP = {"pairs": ["film = movie", "老师 = 教师"]}
OPTIONS = {"augment": {"typos": 1.0}, "swap": SWAP, **{name: {"rate": 1.0} for name in NOISE}}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_function_of_the_key_and_spares_the_target(name: str) -> None:
    perturb = Perturbation(name, OPTIONS.get(name, {}))
    example = ITEMS if name.startswith("history") or name == "options" else TEXT
    if name == "contractions":
        example = replace(TEXT, input="It is not in Paris.")
    found = perturb(example, EN, "0", "test")
    assert found is not None and found == perturb(example, EN, "0", "test")
    assert found.output == example.output and found.id == example.id
    if example is TEXT:
        assert "Paris" in (found.input or "") and "good" in (found.input or "").lower()
    assert name not in ("typos", "lookalikes") or found != perturb(example, EN, "1", "test")
    assert perturb(Example(instruction="", history=("a",)), EN, "0", "test") is None or name in ("distractor",)


@pytest.mark.parametrize("name", [*NOISE, *OTHERS, "instruction"])
def test_chinese_examples_keep_their_target(name: str) -> None:
    text = "王伟在北京是一名老师，2007年出生，大家都非常喜欢这部好电影。"
    example = Example(instruction="电影好吗？", input=text, output="好电影")
    found = Perturbation(name, OPTIONS.get(name, {}))(example, World("zh", ("好评", "差评")), "0")
    assert (found is None) == (name in ("keyboard", "case", "contractions"))
    if found is not None:
        assert "好电影" in (found.input or "") and found != example


def test_what_stays_the_same_is_none() -> None:
    assert Perturbation("contractions")(Example(instruction="A film."), EN, "0") is None
    assert Perturbation("instruction")(Example(instruction="A film."), EN, "0") is None  # its text is its instruction
    assert Perturbation("options")(replace(ITEMS, candidates=("a",)), EN, "0") is None
    assert Perturbation("history_shuffle", {"last": 10})(ITEMS, EN, "0") is None
    assert Perturbation("history_replace")(ITEMS, World("en"), "0") is None  # no popularity is known


def test_what_users_say_is_changed() -> None:
    said = (Message("user", "a remarkably good film"), Message("assistant", "remarkably so"), Message("user", "really"))
    found = Perturbation("typos", {"rate": 1.0})(Example(instruction="", messages=said), World("en"), "0")
    assert found is not None and found.messages[0] != said[0] and found.messages[1] == said[1]


def test_tags_go_with_their_words() -> None:
    example = Example(
        instruction="He doesn't like New York , really .", output=("O", "O", "O", "B-LOC", "I-LOC", "O", "O", "O")
    )
    for name, options in (("typos", {"rate": 1.0}), ("case", {"to": "upper"}), ("truncation", {"keep": 0.7})):
        found = Perturbation(name, options)(example, TAGGED, "0")
        assert found is not None and isinstance(found.output, tuple)
        words = found.instruction.split()
        assert len(words) == len(found.output) and words[3:5] == ["New", "York"]
    found = Perturbation("punctuation", {"how": "remove"})(example, TAGGED, "0")
    assert found is not None and found.instruction == "He doesn't like New York really "
    assert found.output == ("O", "O", "O", "B-LOC", "I-LOC", "O")
    for name in ("distractor", "contractions"):  # words without a tag
        assert Perturbation(name)(example, TAGGED, "0") is None
    listed = replace(
        example, words=("a film", "in", "Paris"), instruction="", input="a film in Paris", output=("O", "O", "L")
    )
    found = Perturbation("case", {"to": "upper"})(listed, TAGGED, "0")
    assert found is not None and found.words == ("A FILM", "IN", "PARIS")


def test_items_of_a_history() -> None:
    shuffled = Perturbation("history_shuffle", {"last": 3})(ITEMS, EN, "0")
    assert shuffled is not None and shuffled.history[-3:] == ITEMS.history[-3:]
    assert sorted(shuffled.history) == sorted(ITEMS.history)
    dropped = Perturbation("history_drop", {"rate": 0.3})(ITEMS, EN, "0")
    assert dropped is not None and len(dropped.history) == 7 and set(dropped.history) < set(ITEMS.history)
    sparse = replace(ITEMS, history=tuple(f"i{3 * n}" for n in range(10)))
    for key in map(str, range(20)):
        found = Perturbation("history_replace", {"rate": 0.5, "distance": 5})(sparse, EN, key)
        assert found is not None and found.history[-1] == "i27" and len(set(found.history)) == 10
        assert sum(old != new for old, new in zip(sparse.history, found.history, strict=True)) == 4  # half of nine
        for old, new in zip(sparse.history, found.history, strict=True):
            assert abs(int(old[1:]) - int(new[1:])) <= 5 and new != "i11"
    options = Perturbation("options")(ITEMS, EN, "0")
    assert options is not None and sorted(options.candidates) == ["a", "b", "c"] != list(options.candidates)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("typo", {}, "no perturbation 'typo'. Did you mean 'typos'"),
        ("typos", {"rat": 0.1}, "typos has no option 'rat': it has rate. Did you mean 'rate'"),
        ("typos", {"rate": 2}, "typos.rate should be a share from 0 to 1"),
        ("typos", {"rate": float("nan")}, "typos.rate should be a share from 0 to 1"),
        ("typos", {"rate": True}, "typos.rate should be a share from 0 to 1"),
        ("case", {"to": "mixed"}, "case.to should be one of lower, upper, title, swapped"),
        ("options", {"rate": 0.1}, "options has no option 'rate': it has none"),
        ("distractor", {"sentences": "x"}, "distractor.sentences should be a list of texts"),
        ("distractor", {"sentences": [3]}, "distractor.sentences should be a list of texts"),
        ("instruction", {"wordings": ["x"]}, "instruction.wordings should be a list of texts with {instruction}"),
        ("history_shuffle", {"last": -1}, "history_shuffle.last should be a count"),
        ("augment", {"typo": 0.1}, "augment has no option 'typo'"),
        ("augment", {}, "augment sets no method"),
        ("augment", {"synonyms": 0.5, "thesaurus": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_wrong_perturbations_are_named(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Perturbation(name, options)
    assert said in str(caught.value)


def test_every_name_is_one_function() -> None:
    assert len(NAMES) == len(set(NAMES)) == len(NOISE) + len(OTHERS) + len(LISTS) + 1
    assert str(Perturbation("typos", {"rate": 0.1})) == "typos (rate 0.1)" and str(Perturbation("names")) == "names"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "a list of texts"),
        (["he"], "a pair should be"),
        (["a = b", "a = c"], "swap.pairs has 'a' twice"),
        (None, "no pairs"),
    ],
)
def test_tables_of_swaps_are_checked(pairs: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Perturbation("swap", {} if pairs is None else {"pairs": pairs})
