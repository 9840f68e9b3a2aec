"""Sentences as questions, in both languages; and sentences that are no plain facts."""

import pytest

from instructrec_jax.metrics.language import has_cjk
from instructrec_jax.synthesis.facts import facts

ALBERT = "Albert of Austria"


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
        ("The town has about 25,000 students in all.", "how_many", "students does the town have", "25,000"),
        ("The networks have three hidden layers, and more.", "how_many", "hidden layers do the networks have", "three"),
        ("The set included 40 large maps of it.", "how_many", "large maps did the set include", "40"),
        ("The town has 25 percent of all.", "", "", ""),
        ("弗赖堡有25000名学生，", "how_many", "弗赖堡有多少名学生", "25000"),
        ("长江大桥建成于1957年，是第一座大桥。", "when", "长江大桥是什么时候建成的", "1957年"),
        ("这所大学的前身于1920年5月成立。", "", "", ""),
        ("北京大学在1898年成立，", "when", "北京大学是什么时候成立的", "1898年"),
        ("宜昌位于长江中游，三峡大坝就在那里。", "where", "宜昌位于哪里", "长江中游"),
        ("《红楼梦》由曹雪芹创作，是名著。", "who", "《红楼梦》是由谁创作的", "曹雪芹"),
        ("长江是亚洲第一长的河流。", "describe", "长江", "亚洲第一长的河流"),
        ("In 1457, the university was founded by Albert of Austria.", "who", "was the university founded by", ALBERT),
        (
            "Currently, Brazil is the second producer of soybeans.",
            "describe",
            "Brazil",
            "the second producer of soybeans",
        ),
        ("Ada (1815–1852) was one of the first programmers.", "describe", "Ada", "one of the first programmers"),
        ("Harvard's big library is the largest of all.", "describe", "Harvard's big library", "the largest of all"),
        ("Let's say that it is a lie of the worst kind.", "", "", ""),
        ("目前，弗雷斯诺（城市） 是 一座大城市，", "describe", "弗雷斯诺", "一座大城市"),
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
    language = "zh" if has_cjk(sentence) else "en"
    found = [(fact.kind, fact.asked, fact.answer) for fact in facts(sentence, language)]
    assert found == ([(kind, asked, answer)] if kind else [])
    assert all(answer in sentence for _, _, answer in found)


def test_a_word_that_is_no_name_loses_its_capital() -> None:
    sentence = "Compression is a key step of all this."
    (fact,) = facts(sentence, "en", f"{sentence} We need compression.")
    assert fact.asked == "compression"
    (fact,) = facts(sentence, "en", sentence)
    assert fact.asked == "Compression"
