"""Sentences as questions, in both languages; and sentences that are no plain facts."""

import pytest

from instructrec_jax.synthesis.facts import facts


@pytest.mark.parametrize(
    ("sentence", "kind", "asked", "answer"),
    [
        ("Freiburg is a university town in Germany.", "describe", "Freiburg", "a university town in Germany"),
        ("The cathedral is a church of the town, and it is old.", "describe", "the cathedral", "a church of the town"),
        ("Fresno is the largest U.S. city in the valley.", "describe", "Fresno", "the largest U.S. city in the valley"),
        ("The university was founded in 1457 and grew.", "when", "was the university founded", "in 1457"),
        ("Ada Lovelace was born on 10 December 1815.", "when", "was Ada Lovelace born", "on 10 December 1815"),
        ("The book was published in London in May 1999.", "when", "was the book published", "in May 1999"),
        ("The museum is located in the Old Town.", "where", "is the museum located", "in the Old Town"),
        ("Hamlet was written by William Shakespeare in London.", "who", "was Hamlet written by", "William Shakespeare"),
        ("长江大桥建成于1957年，是第一座大桥。", "when", "长江大桥是什么时候建成的", "1957年"),
        ("这所大学的前身于1920年5月成立。", "", "", ""),
        ("北京大学在1898年成立，", "when", "北京大学是什么时候成立的", "1898年"),
        ("宜昌位于长江中游，三峡大坝就在那里。", "where", "宜昌位于哪里", "长江中游"),
        ("《红楼梦》由曹雪芹创作，是名著。", "who", "《红楼梦》是由谁创作的", "曹雪芹"),
        ("长江是亚洲第一长的河流。", "describe", "长江", "亚洲第一长的河流"),
        ("It is a university town in Germany.", "", "", ""),
        ("In 1999 there is a town in Germany.", "", "", ""),
        ("What Ann said is a lie of the worst kind.", "", "", ""),
        ("The result is an improvement of the whole method.", "", "", ""),
        ("The man who came was a friend of the family.", "", "", ""),
        ("Freiburg is nice and sunny in summer.", "", "", ""),
        ("他是一名医生。", "", "", ""),
        ("研究人员认为这是一种疾病。", "", "", ""),
    ],
)
def test_facts(sentence: str, kind: str, asked: str, answer: str) -> None:
    language = "en" if sentence.isascii() else "zh"
    found = [(fact.kind, fact.asked, fact.answer) for fact in facts(sentence, language)]
    assert found == ([(kind, asked, answer)] if kind else [])
    assert all(answer in sentence for _, _, answer in found)


def test_a_word_that_is_no_name_loses_its_capital() -> None:
    sentence = "Compression is a key step of all this."
    (fact,) = facts(sentence, "en", f"{sentence} We need compression.")
    assert fact.asked == "compression"
    (fact,) = facts(sentence, "en", sentence)
    assert fact.asked == "Compression"
