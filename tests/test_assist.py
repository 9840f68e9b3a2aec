"""The desk: intents, slots, actions, replies; the threshold and its ROC, compared with brute force."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desk_actions import ACTIONS, INTENTS
from helpers import SUBJECTS
from sklearn.metrics import roc_auc_score
from tiny_runs import changed, tiny_run

from instructrec_jax import assist as verb
from instructrec_jax.answering.desk import (
    Desk,
    matched,
    read_actions,
    read_requests,
    respond,
    tagged_slots,
    tune_threshold,
)
from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.tasks import ClassificationConfig, TokenClassificationConfig
from instructrec_jax.train import train

ROOT = Path(__file__).parents[1]
TAGS = ["B-subject", "I-subject", "O"]


def made(folder: Path, checkpoint: Path, task: Any, examples: list[Example], steps: int) -> Path:
    """A finished run on these examples."""
    write_jsonl(folder / "data.jsonl", [example.to_record() for example in examples])
    source = [SourceConfig(path=str(folder / "data.jsonl"))]
    config = tiny_run("classification", checkpoint, folder / "unused", steps=steps, evaluation__every=steps)
    config = changed(
        config,
        run_dir=str(folder / "run"),
        task=task,
        data__train=source,
        data__validation=source,
        data__test=source,
        data__batch_size=16,
        checkpoint__every=steps,
    )
    train(config)
    return folder / "run"


def text(rng: np.random.Generator, word: str) -> str:
    return " ".join([*rng.choice("the a film book".split(), 2), word, str(rng.choice(["old", "new"]))])


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels taken from the data: the task lists none."""
    rng = np.random.default_rng(0)
    chosen = [INTENTS[i] for i in rng.integers(0, 3, 96)]
    examples = [Example(instruction=text(rng, intent[4:]), output=intent) for intent in chosen]
    return made(tmp_path_factory.mktemp("intents"), checkpoint, ClassificationConfig(), examples, 50)


@pytest.fixture(scope="module")
def tagger(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    words = [text(rng, str(rng.choice(SUBJECTS))).split() for _ in range(96)]
    examples = [
        Example(instruction=" ".join(each), output=tuple("B-subject" if w in SUBJECTS else "O" for w in each))
        for each in words
    ]
    task = TokenClassificationConfig(labels=TAGS)
    return made(tmp_path_factory.mktemp("tags"), checkpoint, task, examples, 50)


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    file = tmp_path / "actions.yaml"
    file.write_text(ACTIONS, encoding="utf-8")
    return file


# ------------------------------------------------------------------ actions and slots


def test_the_example_of_configs_is_whole() -> None:
    """Checked with the intents that the file names, which Banking77's own data contain."""
    file = ROOT / "configs" / "customer_service" / "actions.yaml"
    import yaml

    intents = list(yaml.safe_load(file.read_text(encoding="utf-8"))["intents"])
    read = read_actions(file, intents)
    slots = matched(read.slots, "Please stop the transfer of €1,250.50 to Anna Berg, my card ends in 4711")
    assert slots == {"amount": "€1,250.50", "name": "Anna Berg", "card": "4711"}
    assert "4711" in respond(read, "lost_or_stolen_card", slots)["reply"]


# ------------------------------------------------------------------ out of scope


# ------------------------------------------------------------------ the desk


def test_a_request_is_answered(
    run: Path, tagger: Path, actions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb.main([str(run), "--actions", str(actions), "the film love 4711 tuesday", "--threshold", "0"])
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "text": "the film love 4711 tuesday",
        "intent": "ask_love",
        "confidence": answer["scope_score"],
        "out_of_scope": False,
        "scope_score": answer["scope_score"],
        "slots": {"order": "4711", "day": "tuesday"},
        "action": "find_order",
        "reply": "Order 4711 comes on tuesday. 你好 {}",
    }
    assert 1 / 3 < answer["confidence"] <= 1

    asked = tmp_path / "asked.txt"
    asked.write_text("the film love 4711\n\nthe book space old\nthe book war old\n", encoding="utf-8")
    out = tmp_path / "answers.jsonl"
    verb.main([str(run), "--actions", str(actions), "--input", str(asked), "--out", str(out)])
    assert "threshold" in capsys.readouterr().err
    found = [(a["intent"], a["action"], a.get("missing")) for a in read_jsonl(out)]
    assert found == [
        ("ask_love", "ask", ["day"]),
        ("ask_space", "show", None),
        ("ask_war", "hand_over", None),
    ]
    with pytest.raises(ValueError, match="--out"):
        verb.main([str(run), "--actions", str(actions), "--input", str(asked), "--out", str(out)])


def test_slots_of_a_tagging_run(run: Path, tagger: Path, actions: Path) -> None:
    actions.write_text(ACTIONS.replace("Here it is.", "About {subject}.").replace("action: show", SUBJECT))
    desk = Desk(run, actions, slots=tagger)
    (answer, other) = desk.answer([("1", "the film space, old"), ("2", "the film the old")])
    assert answer["slots"] == {"subject": "space"}  # without the comma
    assert answer["reply"] == "About space." and other["slots"] == {}
    with pytest.raises(ValueError, match="--slots"):
        tagged_slots(["other", "subject"])
    with pytest.raises(ValueError, match="token_classification"):
        Desk(run, actions, slots=run)


SUBJECT = "requires: {subject: 'About what?'}, action: show"


def test_a_tuned_threshold_is_kept_with_the_run(
    run: Path, actions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    inside, outside = tmp_path / "inside.jsonl", tmp_path / "outside.txt"
    records = [{"instruction": text(rng, intent[4:])} for intent in INTENTS * 8]
    write_jsonl(inside, records)
    strange = [" ".join(rng.choice("very not dull long short bright".split(), 5)) for _ in range(20)]
    outside.write_text("\n".join(strange))
    files = ["--tune_threshold", str(inside), str(outside), "--false_positive_rate", "0.2"]
    verb.main([str(run), *files, "--score", "negative_energy"])
    told = json.loads(capsys.readouterr().out)
    assert told == read_json(run / "assist" / "threshold.json")
    assert (run / "assist" / "roc.png").read_bytes().startswith(b"\x89PNG")
    curves = read_json(run / "assist" / "roc.json")
    assert set(curves) == {"max_probability", "negative_energy"}
    assert told["auroc"] == curves["negative_energy"]["auroc"] and told["fpr"] <= 0.2

    desk = Desk(run, actions)
    assert desk.score == "negative_energy" and desk.threshold == told["threshold"]
    of_inside = desk.answer([("", record["instruction"]) for record in records])
    of_outside = desk.answer([("", line) for line in strange])
    assert np.mean([not a["out_of_scope"] for a in of_inside]) == pytest.approx(told["tpr"])
    assert np.mean([not a["out_of_scope"] for a in of_outside]) == pytest.approx(told["fpr"])
    truth = np.repeat([1, 0], [24, 20])
    scores = [a["scope_score"] for a in [*of_inside, *of_outside]]
    assert told["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert all(a["action"] == "hand_over" for a in of_outside if a["out_of_scope"])
    # a single request gets the same verdict
    for number in range(3):
        assert desk.answer([("", strange[number])])[0]["out_of_scope"] == of_outside[number]["out_of_scope"]

    with pytest.raises(ValueError, match="negative_energy"):
        Desk(run, actions, score="max_probability")
    assert Desk(run, actions, threshold=0.5).score == "max_probability"
    with pytest.raises(ValueError, match="out of scope"):
        tune_threshold(run, read_requests(str(inside)), iter(()))


def test_requests_that_cannot_be_read(
    run: Path, actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "the film"}, {"question": "the film"}])
    with pytest.raises(ValueError, match="a.jsonl, line 2, field 'text'"):
        list(read_requests(str(tmp_path / "a.jsonl")))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="a.txt, line 1.*UTF-8"):
        list(read_requests(str(tmp_path / "a.txt")))
    with pytest.raises(ValueError, match="--actions"):
        verb.main([str(run), "the film"])
    with pytest.raises(ValueError, match="--input"):
        verb.main([str(run), "the film", "--actions", str(actions), "--input", "x.txt"])
    with pytest.raises(ValueError, match="stdin, line 2.*max_length"):
        lines = ("the film love\n" + "a film " * 40).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        verb.main([str(run), "--actions", str(actions)])
