"""Suites: what ships can be read, and whatever is wrong with one is named."""

import random
from pathlib import Path

import pytest
import yaml
from helpers import mutations

from instructrec_jax.data.example import Example
from instructrec_jax.parsing import parse_yaml
from instructrec_jax.robustness import suite as suites
from instructrec_jax.robustness.lists import LANGUAGES
from instructrec_jax.robustness.perturbations import NAMES, World
from instructrec_jax.robustness.suite import BIAS, FAMILIES, read_suite, read_suite_of, shipped_suite, suite_of_package
from instructrec_jax.tasks.task_config import TaskConfig

WITHOUT = {  # tasks whose answers no default suite tests: pictures, sounds, ciphers, and what several tasks do
    *("contrastive", "image_tokenization", "text_to_image", "transcription", "masked_lm", "position_translation"),
    "multitask",
}
WHOLE = """
name: mine
language: en
examples: 20
seed: 3
limit: 0.2
tests:
  - name: typos
    kind: invariance
    perturb: {typos: {rate: 0.1}}
    same: {f1: 0.9}
    limit: 0.1
    task: qa
  - name: praise
    kind: minimum
    optional: true
    template: "{first_name} likes the {thing}."
    slots: {thing: [film, book]}
    count: 10
    examples: [A good one., {text: Another one., output: positive}, {instruction: "Is it?", input: "It is.", output: a}]
    expect: {output: positive}
  - name: blame
    kind: directional
    perturb: {distractor: {sentences: [I hate it.]}}
    expect: {probability: {label: positive, change: not_up, by: 0.1}}
adversarial: {budget: 10, changed: 0.5, similarity: 0, candidates: 2, examples: 5}
"""


def test_a_whole_suite_is_read() -> None:
    found = read_suite_of(parse_yaml(WHOLE, "x"), "x", "zh")
    assert (found.name, found.language, found.examples, found.seed, found.limit) == ("mine", "en", 20, 3, 0.2)
    typos, praise, blame = found.tests
    assert str(typos.perturb) == "typos (rate 0.1)" and typos.limit == 0.1 and typos.task == "qa"
    assert len(praise.given) == 13 and praise.optional and praise.given[0].text == "A good one."
    assert praise.given[1].fields == {"output": "positive"} and praise.given[2].fields["input"] == "It is."
    assert blame.expect.values["by"] == 0.1
    assert found.adversarial is not None and found.adversarial.budget == 10 and found.adversarial.similarity == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("examples: 20", "example: 20", "x: there is no field 'example'. Did you mean 'examples'"),
        ("rate: 0.1", "rte: 0.1", "x: tests[0] ('typos'): typos has no option 'rte'"),
        ("kind: invariance", "kind: invariant", "x: tests[0] ('typos'): kind should be one of invariance"),
        ("kind: invariance", "", "x: tests[0] ('typos'): kind is missing"),
        ("perturb: {typos: {rate: 0.1}}", "", "x: tests[0] ('typos'): set perturb"),
        ("perturb: {typos: {rate: 0.1}}", "perturb: [typos]", "perturb should be a name"),
        ("perturb: {typos: {rate: 0.1}}", "perturb: {typos: 3}", "the options of typos should be named"),
        ("limit: 0.2", "limit: 20", "x: limit should be a share"),
        ("seed: 3", "seed: yes", "x: seed should be a whole number"),
        ("examples: 20", "examples: 0", "x: examples should be at least 1"),
        ("language: en", "language: de", "x: language should be one of en, zh"),
        ("name: blame", "name: typos", "x: two tests are named 'typos'"),
        ("name: blame", "nam: blame", "x: tests[2]: it has no name"),
        ("same: {f1: 0.9}", "expect: {output: a}", "x: tests[0] ('typos'): there is no field 'expect'"),
        ("{thing: [film, book]}", "{thin: [film, book]}", "x: tests[1] ('praise'): slots has 'thin'"),
        (
            "text: Another",
            "txt: Another",
            "x: tests[1] ('praise'): examples[1]: there is no field 'txt'. Did you mean 'text'",
        ),
        ("output: a}", "output: {a: 1}}", "x: tests[1] ('praise'): examples[2]: field 'output'"),
        ("kind: minimum", "kind: minimum\n    perturb: typos", "a minimum test has examples or a template"),
        ("budget: 10", "budgt: 10", "x: adversarial: there is no field 'budgt'. Did you mean 'budget'"),
        ("changed: 0.5", "changed: 5", "x: adversarial: changed should be a share"),
        ("label: positive, ", "", "x: tests[2] ('blame'): expect.probability.label should be a text"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, said: str) -> None:
    assert old in WHOLE
    with pytest.raises(ValueError) as caught:
        read_suite_of(parse_yaml(WHOLE.replace(old, new), "x"), "x", "en")
    assert said in str(caught.value)


def test_damaged_suites_are_named() -> None:
    """Whatever stands where: a suite, or a ValueError that begins with its name."""
    for mutant in mutations(parse_yaml(WHOLE, "x"), 300, random.Random(0)):
        try:
            read_suite_of(mutant, "x", "en")
        except ValueError as error:
            assert str(error).startswith("x"), error


@pytest.mark.parametrize("content", ["", "tests: []", "[]", "3", "tests: [3]", "\x00", "tests: {a: 1}"])
def test_files_without_tests_are_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="x.yaml"):
        read_suite(path, "en")
    with pytest.raises(ValueError, match="nowhere.yaml cannot be read"):
        read_suite(tmp_path / "nowhere.yaml", "en")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_shipped_suite_is_read(kind: str, language: str) -> None:
    found = shipped_suite(kind, language)
    assert found.language == language and len(found.tests) >= 5
    assert any(test.kind == "invariance" for test in found.tests)


def test_every_task_has_a_suite_or_is_named_here() -> None:
    registered = {name for name in TaskConfig.get_known_choices() if not name.startswith("test-")}  # of other tests
    assert set(FAMILIES) | WITHOUT == registered
    assert not set(FAMILIES) & WITHOUT
    with pytest.raises(ValueError, match="no default suite for the task masked_lm"):
        shipped_suite("masked_lm", "en")
    folder = Path(suites.__file__).parent / "suites"
    names = {f"{family}.{language}.yaml" for family in (*FAMILIES.values(), BIAS) for language in LANGUAGES}
    assert {file.name for file in folder.iterdir()} == names
    assert all(yaml.safe_load(file.read_text(encoding="utf-8"))["tests"] for file in folder.iterdir())


def test_the_suite_of_the_docs_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "robustness.md").read_text(encoding="utf-8")
    block = page.partition("```yaml\n")[2].partition("```")[0]
    found = read_suite_of(parse_yaml(block, "docs"), "docs", "en")
    assert len(found.tests) == 4 and found.adversarial is not None
    assert all(f"| `{name}`" in page or f"`{name}`, `" in page or f", `{name}` |" in page for name in NAMES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_bias_probes_are_invariances_that_change_their_texts(language: str) -> None:
    found = suite_of_package(BIAS, language)
    assert found.language == language and {test.kind for test in found.tests} == {"invariance"}
    said = {
        "en": "He is not my neighbor; Mary discussed it with her brother, and she returned.",
        "zh": "他不是李娜的朋友，她喜欢看视频。",
    }
    for test in found.tests:
        assert test.perturb is not None
        changed = test.perturb(Example(instruction=said[language]), World(language), "0", test.name)
        is_of_lists = test.perturb.name == "names" and test.perturb.options["locale"] == "us"  # Mary is one of them
        assert (changed is not None and changed.instruction != said[language]) or is_of_lists, test.name
    names = [test for test in found.tests if test.name.startswith("names of ")]
    assert {test.name.split()[2].rstrip(",") for test in names} == {"women", "men"}
    sentences = [each for test in names for each in test.perturb.options["sentences"]]  # type: ignore[union-attr, attr-defined]
    assert len(sentences) == len(set(sentences))
