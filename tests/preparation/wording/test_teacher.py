import warnings

import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.preparation.wording.teacher import rewrite_with_teacher
from instructrec_jax.ranking.catalogue import Catalogue

FILMS = Catalogue(["a", "b"], ["Moon Race", "Up"], ["Moon Race", "Up"])


def example(request, target, form="matching"):
    origin = {"language": "en", "target": target, "form": form, "intention_text": request}
    if form == "request":
        return Example(instruction="Which wish does it fulfil?", output=request, origin=origin)
    return Example(instruction=f"I have watched Alien. Find me {request}, please.", output=target, origin=origin)


def test_requests_in_the_teachers_words():
    asked = []

    def generate(prompts):
        asked.extend(prompts)
        return [" something\nwith a laugh. "] * len(prompts)

    plain = Example(instruction="I have watched Alien. What next?", output="a", origin={"language": "en"})
    examples = [example("a comedy", "a"), plain, example("a comedy", "b", "request")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewritten, counts = rewrite_with_teacher(examples, generate, FILMS, "small")
    assert len(asked) == 1 and asked[0].endswith("a comedy")
    assert rewritten[0].instruction == "I have watched Alien. Find me something with a laugh, please."
    assert rewritten[0].origin["teacher"] == "small" and rewritten[0].output == "a"
    assert rewritten[0].origin["intention_text"] == "something with a laugh"
    assert rewritten[1] == plain
    assert rewritten[2].output == "something with a laugh" and rewritten[2].instruction == examples[2].instruction
    assert counts == {"rewritten": 2, "no request": 1}


def test_an_answer_that_is_empty_or_names_the_target_is_not_used():
    answers = {"a comedy": "", "a drama": "the one called MOON race", "a western": "a western that I give a thumbs up"}
    examples = [example("a comedy", "a"), example("a drama", "a"), example("a drama", "b"), example("a western", "b")]
    with pytest.warns(UserWarning, match=r"3 of 4 requests .*\(1\).*\(2\)"):
        rewritten, counts = rewrite_with_teacher(
            examples, lambda prompts: [answers[p.split(": ")[-1]] for p in prompts], FILMS
        )
    assert [e.instruction == old.instruction for e, old in zip(rewritten, examples, strict=True)] == [
        True,
        True,
        False,
        True,
    ]
    assert [e.origin["teacher"] for e in rewritten] == [
        "not used: empty",
        "not used: title",
        "teacher",
        "not used: title",
    ]
    assert counts == {"empty": 1, "title": 2, "rewritten": 1}
