"""Each rule on texts written for it, and properties of all pairs of random texts. (`synthesis.instruction_texts`)"""

import random
import re
from dataclasses import replace

import pytest
from synthesis_texts import RIVER, TOWN, random_text

from instructrec_jax.augmentation.augmenter import random_numbers
from instructrec_jax.synthesis.grounding import Pair, problem
from instructrec_jax.synthesis.instruction_texts import WORDINGS, YES_NO
from instructrec_jax.synthesis.passages import Passage, passages
from instructrec_jax.synthesis.rules import BLANK, EACH, RULES, pairs_of

PASSAGES = {"en": Passage(TOWN, title="The university town of Freiburg"), "zh": Passage(RIVER, title="长江的历史")}


def made(rule: str, passage: Passage, seeds: int = 12) -> list[Pair]:
    """The pairs of a rule under several seeds."""
    assert passage.language is not None
    found = [list(RULES[rule](passage, passage.language, random_numbers(str(n)))) for n in range(seeds)]
    return [pair for pairs in found for pair in pairs]


@pytest.fixture(params=["en", "zh"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_wordings_have_one_place_and_both_languages() -> None:
    for name, by_language in WORDINGS.items():
        assert set(by_language) == {"en", "zh"}
        for text in (text for texts in by_language.values() for text in texts):
            assert text.count("{}") == (name not in ("title", "summary")), text


def test_instructions_vary_and_are_in_the_language_of_the_text(language: str) -> None:
    texts = {pair.instruction for pair in made("title", PASSAGES[language], 30)}  # type: ignore[index]
    assert texts == set(WORDINGS["title"][language])  # type: ignore[index]


def test_title(language: str) -> None:
    passage = PASSAGES[language]
    assert {pair.answer for pair in made("title", passage)} == {passage.title}
    assert not made("title", replace(passage, title="")) and not made("title", replace(passage, number=1))
    wrong = made("title", replace(passage, title="Cologne" if language == "en" else "黄山的秋天"))
    assert wrong and all(problem(pair, passage) for pair in wrong)


def test_cloze(language: str) -> None:
    passage = PASSAGES[language]
    pairs = made("cloze", passage, 40)
    answers = {pair.answer for pair in pairs}
    assert answers >= ({"1457", "25,000", "Black Forest"} if language == "en" else {"6300", "1957", "《三国演义》"})
    for pair in pairs:
        blanked = next(s for s in passage.sentences if s.replace(pair.answer, BLANK) in pair.instruction)
        assert blanked.count(pair.answer) == 1


def test_order(language: str) -> None:
    pairs = made("order", PASSAGES[language])
    assert pairs
    for pair in pairs:
        listed = dict(re.findall(r"^([A-D])\. (.+)$", pair.instruction, re.MULTILINE))
        told = " ".join(listed[letter] for letter in pair.answer.split(", "))
        assert "".join(told.split()) in "".join(PASSAGES[language].text.split())
        assert sorted(listed) == sorted(pair.answer.split(", ")) and list(listed) != pair.answer.split(", ")
        assert not problem(pair, PASSAGES[language]) and pair.alone
    text = "The first one is here for you. The second one is over there. The third one is nowhere at all."
    assert not made("order", Passage(text))  # no sentence needs the one before it


def test_fact(language: str) -> None:
    found = {(pair.rule, pair.answer) for pair in made("fact", PASSAGES[language])}
    if language == "en":
        assert ("fact: when", "in 1457") in found
        assert ("fact: describe", "a university town in the south of Germany") in found
        assert ("fact: who", "masters") not in found
    else:
        assert {("fact: when", "1957年"), ("fact: where", "长江中游")} <= found


def test_keywords(language: str) -> None:
    passage = PASSAGES[language]
    pairs = made("keywords", passage)
    assert pairs
    for pair in pairs:
        assert pair.answer in passage.sentences
        for word in re.findall(r"“([^”]+)”", pair.instruction):
            assert [word in sentence for sentence in passage.sentences].count(True) == 1 and word in pair.answer


def test_summary() -> None:
    lead = "The library of Freiburg keeps the maps of the university."
    text = f"{lead} The maps are old. A library in Freiburg needs room. The university pays for maps. The rest is free."
    assert {pair.answer for pair in made("summary", Passage(text))} == {lead}
    assert not made("summary", Passage(text, number=1))
    other = "Nobody ever thought about anything like that before now."
    assert not made("summary", Passage(text.replace(lead, other)))  # says other things than the rest
    assert not made("summary", Passage(f"It is so. {text}"))
    chinese = "三峡大坝是长江上的大坝，位于宜昌。大坝很大。长江经过三峡。宜昌是长江上的城市，靠近三峡大坝。"
    assert {pair.answer for pair in made("summary", Passage(chinese))} == {"三峡大坝是长江上的大坝，位于宜昌。"}


def test_yes_no(language: str) -> None:
    passage = PASSAGES[language]
    pairs = made("yes_no", passage, 40)
    yes, no = YES_NO[language]  # type: ignore[index]
    assert {pair.answer for pair in pairs} == {yes, no}
    for pair in pairs:
        assert pair.quoted[-1] in passage.sentences and not problem(pair, passage)
        assert (pair.answer == yes) == (len(pair.quoted) == 1)
    changed = " ".join(pair.quoted[0] for pair in pairs if pair.answer == no)
    if language == "en":
        assert "is not a university town" in changed and re.search(r"founded in 14\d\d", changed)
    else:
        assert "长江不是亚洲" in changed and re.search("建成于19[^5]7年|建成于195[^7]年", changed)


def test_days_of_dates_stay_in_changed_statements() -> None:
    text = (
        "The ship left the port on 31 May 1954 and came on February 21 to it. 大桥于1954年5月31日在这里正式建成通车。"
    )
    for passage in map(Passage, (text.split(" 大")[0], "大" + text.split(" 大")[1])):
        changed = [pair.quoted[0] for pair in made("yes_no", passage, 40) if pair.check == "no"]
        assert changed and all("31 May" in each and "21" in each or "5月31日" in each for each in changed)


def test_names_are_exchanged_behind_the_same_word() -> None:
    text = (
        "The old man was seen in Paris with his two daughters. A letter was found in Rome by the two brothers of his. "
        "He never said to anyone why he had left from there."
    )
    changed = {pair.quoted[0] for pair in made("yes_no", Passage(text), 60) if len(pair.quoted) == 2}
    assert "The old man was seen in Rome with his two daughters." in changed


@pytest.mark.parametrize(
    "piece",
    ["Aa", "Aa-", "a", "A ", "Aa of ", "1,", "1,000", "“", "《a", "X is a ", "长江是", "a.b.", "In 1999, ", "有2个"],
)
def test_text_that_repeats_itself_takes_no_time(piece: str) -> None:
    for text in (f"The X{piece * 600}_.", f"The X{piece * 60}_ and that is the end to it.", f"长江的{piece * 40}。"):
        for passage in passages(text * 2, 300, title="The end"):
            for language in ("en", "zh"):
                for rule in RULES.values():
                    list(rule(passage, language, random_numbers("0")))  # type: ignore[arg-type]


def test_other_languages_get_none() -> None:
    assert not pairs_of(Passage("Die Stadt liegt am Rand des Waldes und hat 25.000 Studenten seit dem Jahr 1457."), 0)


def test_random_texts_give_grounded_pairs_that_depend_on_text_and_seed_alone() -> None:
    rng = random.Random(7)
    texts = [random_text(rng) for _ in range(300)]
    rules: set[str] = set()
    dropped = kept = 0
    for text in texts:
        for passage in passages(text, 60, title=text[:20].strip()):
            pairs = pairs_of(passage, 3)
            assert pairs == pairs_of(replace(passage, source="elsewhere"), 3)
            assert all([pair.rule for pair in pairs].count(rule) <= EACH for rule in {pair.rule for pair in pairs})
            for pair in pairs:
                if problem(pair, passage):
                    dropped += 1
                    continue
                kept += 1
                rules.add(pair.rule.split(":")[0])
                if pair.check == "in_text":  # a second opinion on what stands in the text
                    assert pair.answer in passage.text
                elif pair.check == "yes":
                    assert pair.quoted[0] in passage.text and pair.quoted[0] in pair.instruction
                elif pair.check == "no":
                    assert pair.quoted[0] not in passage.text and pair.quoted[1] in passage.text
    assert rules >= {"cloze", "yes_no", "keywords"} and kept > 50 and dropped < kept
