"""Patterns of adapters against `re`, and patterns that `re` would take for ever over."""

import random
import re

import pytest

from instructrec_jax.adapters.module_patterns import matches


def made(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if depth > 3 or kind < 0.4:
        return rng.choice(["a", "b", r"\.", r"\d", r"\w", ".", "[ab]", "[^a]", "1", "$", "^", r"\b"])
    if kind < 0.6:
        return made(rng, depth + 1) + made(rng, depth + 1)
    if kind < 0.75:
        return f"({made(rng, depth + 1)}|{made(rng, depth + 1)})"
    if kind < 0.83:
        return f"(?{rng.choice('!=')}{made(rng, depth + 1)})"
    return f"(?:{made(rng, depth + 1)})" + rng.choice(["*", "+", "?", "*?", "{2}", "{1,3}", "{,2}", "{1,}"])


def test_patterns_match_as_in_re() -> None:
    rng, found = random.Random(0), 0
    for _ in range(5000):
        pattern, name = made(rng), "".join(rng.choice("ab.1_") for _ in range(rng.randint(0, 7)))
        expected = re.fullmatch(pattern, name) is not None
        assert matches(pattern, name) == expected, (pattern, name)
        assert matches(pattern, name, whole=False) == (re.match(pattern, name) is not None), (pattern, name)
        found += expected
    assert found > 300


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r".*\.layers\.(0|1)\.(self_attn|mlp)\.(q|up)_proj", True),
        (r"^(?!.*vision).*(?:q_proj|v_proj)$", True),
        (r"^(?:(?:.*?(?:language|model).*?(?:self_attn|mlp).*?(?:k_proj|q_proj).*?)|(?:\bfoo\.[\d]{1,}))$", True),
        (r"(?P<part>.*)\.v_proj", False),
    ],
)
def test_patterns_as_people_write_them(pattern: str, expected: bool) -> None:
    assert matches(pattern, "model.layers.1.self_attn.q_proj") is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "((.*)*)*!",
        "(a|a|ab)*c",
        "(|)" * 60 + "z",
        ".{0,100}" * 40 + "q",
        r"((\w+\.?)+)+!",
        "(.*.*.*.*.*.*)+x!",
    ]
    + ["((((a?){90}){90}){90}){90}b", "a?" * 200 + "a" * 200],
)
def test_hostile_patterns_end(pattern: str) -> None:
    matches(pattern, "a" * 40 + "model.layers.10.self_attn.q_proj")


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", "(?<=a)b", "(?i)a", "a{101}", "(" * 12 + "a" + ")" * 12, "a" * 30_000, "(", "*"]
)
def test_what_is_not_matched_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|regular expression"):
        matches(pattern, "a")
