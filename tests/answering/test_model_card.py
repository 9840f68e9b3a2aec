"""The model card: what it takes from the files of a run, and that no text of these breaks it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_runs import changed, tiny_run, write_settings

from instructrec_jax.answering.model_card import CARD, Facts, cell, model_card, plain, readme, table, write_model_card
from instructrec_jax.files import append_jsonl, write_json
from instructrec_jax.runs.config import Config

EVIL = "a|b\n---\n<script>alert(1)</script> `x` *y* [l](h) {{ z }} ${m}$ # no: - \"q\" 'r' & \\| \u2028 电影 😀 ~s~"
GROUP: dict[str, Any] = {
    **{"field": "gender", "value": "f", "among": "", "cases": 20, "metric": "accuracy", "shown": "tuned"},
    **{"mean": 0.4, "low": 0.2, "high": 0.6, "gap": -0.3, "gap_low": -0.5, "gap_high": -0.1},
}


BEHAVIOR: dict[str, Any] = {
    **{"suite": "mine", "language": "en", "split": "test", "seed": 0, "examples": 50, "left_out": []},
    "adversarial": {
        **{
            "examples": 50,
            "right": 40,
            "flipped": 10,
            "accuracy_before": 0.8,
            "accuracy_after": 0.6,
            "mean_calls": 9.0,
        },
        **{"budget": 100, "changed": 0.2, "similarity": 0.8, "encoder": "", "words": "", "failed": []},
    },
}
TEST: dict[str, Any] = {
    **{"kind": "invariance", "change": "", "expected": "", "cases": 40, "unchanged": 10, "unread": 0, "failures": 4},
    **{"rate": 0.1, "low": 0.04, "high": 0.23, "limit": None, "over": False, "failed": []},
}


def fill(run: Path, text: str, config: Config) -> Path:
    """A run directory all whose free texts are `text`."""
    run.mkdir(parents=True, exist_ok=True)
    write_settings(config, run / "config.yaml")
    source = {
        "split": "train",
        "name": text,
        "path": text,
        "examples": 1234,
        "license": [text],
        "language": ["en", "zh"],
    }
    facts = {"backbone": text, "parameters": text, "devices": "2 × cpu", "note": text}
    about: dict[str, Any] = {"title": text, "subtitle": text, "facts": facts, "sources": [source]}
    write_json(run / "summary.json", about | {"backbone_license": [text], "device_count": 2})
    rows = [
        {
            "name": "after tuning",
            "values": {"accuracy": 0.5, "ece": 0.125, text: 0.25},
            "intervals": {"accuracy": [0.4, 0.6]},
        },
        {"name": text, "values": {"accuracy": 0.6, text: None}, "note": text},
    ]
    differences = [{"name": f"after tuning − {text}", "metric": "accuracy", "mean": -0.1, "low": -0.2, "high": -0.01}]
    mistakes = [{"reference": text, "prediction": text, "count": 3, "pictures": []}]
    found = {"split": "test", "protocol": text, "metrics": ["accuracy", text], "rows": rows}
    write_json(run / "evaluation.json", {**found, "differences": differences, "mistakes": mistakes})
    write_json(
        run / "groups.json", {"split": "test", "sources": [text], "groups": [GROUP | {"field": text, "value": text}]}
    )
    none: dict[str, Any] = {"name": "none", "cases": 0, "failures": 0, "rate": None, "low": None, "high": None}
    tests = [TEST | {"name": text}, TEST | none]
    write_json(run / "robustness.json", BEHAVIOR | {"suite": text, "tests": tests})
    doubts = [{"title": text, "text": text, "rows": [["", text], [text, "0.9"]]}, {"title": "", "text": "", "rows": []}]
    write_json(run / "uncertainty.json", {"split": "test", "tables": doubts})
    for step, seconds in enumerate([10.0, 100.0, 5.0, 50.0]):  # killed after 100 s, resumed for 50 s
        append_jsonl(run / "metrics.jsonl", [{"kind": "train", "step": step, "seconds": seconds}])
    append_jsonl(run / "metrics.jsonl", [{"kind": "evaluation", "step": 3, "seconds": 9999.0}])
    append_jsonl(run / "skipped.jsonl", [{"reason": text}])
    return run


@pytest.fixture(scope="module")
def config(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_run("classification", checkpoint, tmp_path_factory.mktemp("card"))


def test_a_card_states_what_the_run_does(config: Config, tmp_path: Path) -> None:
    hub = changed(config, backbone__path="org/bert-base", data__max_length=64)
    write_model_card(fill(tmp_path, "Films", hub), 300)
    text = (tmp_path / CARD).read_text(encoding="utf-8")
    card = ModelCard(text)
    assert str(card) == text
    assert card.data.to_dict() == yaml.safe_load(text.split("---")[1])
    assert (card.data.license, card.data.base_model, card.data.language) == ("Films", "org/bert-base", ["en", "zh"])
    assert card.data.pipeline_tag == "text-classification" and card.data.model_name == "Films"
    found = {(each.metric_type, each.metric_value, each.dataset_split) for each in card.data.eval_results or []}
    assert found == {("accuracy", 0.5, "test"), ("Films", 0.25, "test")} and card.data.metrics == ["accuracy", "Films"]
    for said in (
        "# Films\n",
        "License of the backbone: Films",
        "| Films | train | 1,234 | Films | en, zh |",
        "| after tuning | 0.5000 | 0.4000 to 0.6000 |",
        "Results on test (Films). Gaps are",
        "By Films: accuracy of tuned, and the gap to all other cases",
        "Expected calibration error (ece): 0.1250",
        "Films. Films\n\n|  | Films |\n| --- | ---: |\n| Films | 0.9 |",
        "Time: 150 s (0.04 h) on 2 devices",
        "Energy: 0.025 kWh, an estimate: 300 W × 2 × 0.0417 h",
        "Texts have at most 64 tokens; longer ones are refused",
        "Invalid examples left out: 1",
        "after tuning − Films in accuracy: significantly worse (95%)",
        "Worse than on all other cases: accuracy of Films Films: gap -0.3000 \\[-0.5000, -0.1000\\]",
        "The suite Films (en) on 50 examples of data.test.",
        "| Films | invariance | 10.0% | 4.0% to 23.0% | 40 |",
        "| none | invariance | – | – to – | 0 |",
        "Adversarial search within 100 texts an example: accuracy 80.0% before and 60.0% after.",
        "Behavioral test failed: Films: 10.0% of 40 cases",
        "Frequent mistake: Films instead of Films: 3 cases",
    ):
        assert said in card.text, said


def test_an_empty_run_states_that_nothing_is_known(config: Config, tmp_path: Path) -> None:
    write_settings(config, tmp_path / "config.yaml")
    card = ModelCard(model_card(tmp_path))
    assert card.data.to_dict() == {"pipeline_tag": "text-classification", "tags": ["instructrec_jax"]}
    for said in (
        "License of the backbone: not stated",
        "does not state its sources",
        "Not evaluated",
        "Not measured: `evaluate RUN --by FIELD`",
        "Not measured: `evaluate RUN --robust default`",
        "No step was logged",
        "Languages of the data: not stated",
    ):
        assert said in card.text, said
    append_jsonl(tmp_path / "metrics.jsonl", [{"kind": "train", "step": 1, "seconds": 7.0}])
    assert "Energy: not measured" in model_card(tmp_path)
    assert "Energy: not estimated" in model_card(tmp_path, 300)


@pytest.mark.parametrize("evil", [EVIL, "---", "- a: b", "#", "1. one", "'", "null", "\x00\x1b[31m", "| --- |"])
def test_no_text_of_a_run_breaks_its_card(evil: str, config: Config, tmp_path: Path) -> None:
    text = model_card(fill(tmp_path, evil, config))
    harmless = model_card(fill(tmp_path / "b", "Films", config))
    card = ModelCard(text)
    assert str(card) == text and card.data.to_dict() == yaml.safe_load(re.split(r"^---$", text, flags=re.M)[1])
    assert card.data.to_dict().keys() == ModelCard(harmless).data.to_dict().keys()
    lines, others = card.text.split("\n"), ModelCard(harmless).text.split("\n")
    assert len(lines) == len(others)  # no text begins a line of its own
    for line, other in zip(lines, others, strict=True):
        assert "<" not in line and "\x1b" not in line and "\x00" not in line
        assert len(re.findall(r"(?<!\\)\|", line)) == other.count("|"), line  # cells stay in their columns
        assert re.match(r"#* |- |\||", line)[0] == re.match(r"#* |- |\||", other)[0], line  # type: ignore[index]


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([(10.0, 100, 10.0), (20.0, 200, 10.0)], 20.0),
        ([(10.0, 100, 10.0), (2.0, 110, 10.0)], 12.0),  # resumed
        ([(10.0, 100, 10.0), (12.0, 200, 10.0)], 22.0),  # resumed, and slow to begin: 100 tokens took 10 s, not 2
        ([(10.0, 100, 10.0), (500.0, 200, 10.0)], 500.0),  # a long evaluation between
        ([(10.0, 100, None), (20.0, 200, 0.0)], 20.0),
        ([], 0.0),
    ],
)
def test_the_time_of_training(lines: list[Any], seconds: float, config: Config) -> None:
    rows = [{"kind": "train", "seconds": s, "tokens": t, "tokens_per_second": rate} for s, t, rate in lines]
    facts = Facts(config, {}, {}, {"split": "", "sources": [], "groups": []}, None, None, rows, [])
    assert facts.seconds == pytest.approx(seconds)


def test_plain_texts() -> None:
    assert plain("- macro_f1 of _a_ <b>") == "\\- macro_f1 of \\_a\\_ &lt;b&gt;"
    assert plain("1. a") == "1\\. a" and cell("-0.5") == "-0.5" and cell("a\\|b\n c") == "a\\\\\\|b  c"
    assert table(["", "x|y"], [["a", "1"]]) == "|  | x\\|y |\n| --- | ---: |\n| a | 1 |"


def test_bad_folders_and_powers_are_named(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run directory"):
        Facts.read(tmp_path)
    write_settings(config, tmp_path / "config.yaml")
    for watts in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="--watts"):
            model_card(tmp_path, watts)
    (tmp_path / "groups.json").write_text('{"split": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"groups\.json"):
        model_card(tmp_path)


def test_the_readme_of_an_export_has_the_card(config: Config, tmp_path: Path) -> None:
    plain_readme = readme("out", "Exported.", ["`this` opens it."], tmp_path / CARD)
    assert plain_readme == "# out\n\nExported.\n\n`this` opens it.\n"
    write_model_card(fill(tmp_path, EVIL, config))
    found = ModelCard(readme("out", "Exported.", ["`this` opens it."], tmp_path / CARD))
    kept = ModelCard((tmp_path / CARD).read_text(encoding="utf-8"))
    assert found.data.to_dict() == kept.data.to_dict()
    assert found.text.strip().startswith("# out\n\nExported.\n\n`this` opens it.\n\nWritten by instructrec_jax")
    assert found.text.count("\n# ") == 1 and "## Limits" in found.text
    (tmp_path / CARD).write_text("my own words", encoding="utf-8")
    assert readme("out", "Exported.", [], tmp_path / CARD).strip().endswith("my own words")
