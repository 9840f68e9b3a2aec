"""`prepare ids`, from a prepared folder to a run that recommends."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from helpers import examples, task_config
from tiny_runs import tiny_run

from instructrec_jax import prepare
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Request
from instructrec_jax.data.example import Example
from instructrec_jax.evaluate import main as evaluate
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.ranking.semantic_ids import SemanticIds
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.encoding import text_vectors
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import GenerativeConfig
from instructrec_jax.tasks.ranking.generative import GenerativeTask
from instructrec_jax.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    task_config("generative", folder / "catalogue")
    for split, count in {"train": 24, "validation": 8, "test": 8}.items():
        write_jsonl(folder / f"{split}.jsonl", [e.to_record() for e in examples("generative", count)])
    return folder


def asked(folder: Path, checkpoint: Path, network: Path, out: str = "network") -> list[str]:
    named = ["--catalogue", str(folder / "catalogue"), "--encoder", str(checkpoint), "--network", str(network)]
    return ["ids", *named, "--out", str(folder / out), "--levels", "2", "--codes", "3"]


@pytest.fixture(scope="module")
def tuned(folder: Path, checkpoint: Path, language_models: dict[str, Path]) -> Config:
    prepare.main(asked(folder, checkpoint, language_models["t5"]))
    task = GenerativeConfig(catalogue=str(folder / "catalogue"), beams=20)
    config = tiny_run(
        "retrieval", folder / "network", folder, task=task, steps=150, evaluation__every=0, data__max_length=64
    )
    for split in ("train", "validation", "test"):  # with histories, which `tiny_run` does not write
        write_jsonl(folder / f"{split}.jsonl", [e.to_record() for e in examples("generative", 24)])
    train(config)
    return config


def test_it_says_how_far_each_level_is_used(
    folder: Path, checkpoint: Path, language_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    card = prepare.main(asked(folder, checkpoint, language_models["llama"], "decoder"))
    said = capsys.readouterr().out
    assert "level   codes   in use   entropy" in said and "12 items; " in said
    assert f"--task.catalogue {folder / 'catalogue'} --backbone.path {folder / 'decoder'}" in said
    assert [row["codes"] for row in card["levels"]][:2] == [3, 3]  # type: ignore[attr-defined]
    assert read_json(folder / "decoder" / "card.json") == json.loads(json.dumps(card))
    with pytest.raises(ValueError, match="already exists"):
        prepare.main(asked(folder, checkpoint, language_models["llama"], "decoder"))
    prepare.main([*asked(folder, checkpoint, language_models["llama"], "decoder"), "--overwrite", "true"])


def test_another_quantizer_and_instructions_about_codes(
    folder: Path, checkpoint: Path, language_models: dict[str, Path]
) -> None:
    arguments = asked(folder, checkpoint, language_models["llama"], "other")
    card = prepare.main([*arguments, "--quantizer", "fsq", "--alignment", "true", "--noun", "film"])
    assert card["settings"]["quantizer"] == "fsq"  # type: ignore[index]
    ids = SemanticIds.load(folder / "other" / "semantic_ids")
    assert ids.quantizer.projection.bounded and len(ids.items) == 12
    for split in ("train", "test"):
        rows = [Example.from_record(row) for row in read_jsonl(folder / "other" / "alignment" / f"{split}.jsonl")]
        named = {e.output for e in rows if e.origin["form"] == "title to id"}
        assert named == {ids.text(number) for number in range(12)}
    with pytest.raises(ValueError, match="quantizer"):
        prepare.main([*arguments, "--overwrite", "true", "--quantizer", "nonsense"])


def test_it_learns_and_answers_as_it_was_measured(
    folder: Path, tuned: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run keeps the codes, so it needs the network's folder no more than other runs do."""
    rows = {row["name"]: row["values"] for row in read_json(Path(tuned.run_dir) / "evaluation.json", dict)["rows"]}
    assert rows["after tuning"]["NDCG@5"] > rows["before tuning"]["NDCG@5"] + 0.1
    evaluate([tuned.run_dir])
    assert f"{rows['after tuning']['NDCG@5']:.4f}" in capsys.readouterr().out
    run = Run.open(tuned.run_dir)
    assert isinstance(run.task, GenerativeTask)
    assert run.task.ids_folder == Path(tuned.run_dir) / "backbone" / "semantic_ids"
    (answer,) = run.predict([{"instruction": "a good film war", "history": ["item-3"]}])
    found = [each.id for each in answer.items]
    assert len(found) == 10 and "item-3" not in found and len(set(found)) == 10


def test_new_items_get_codes_and_are_found(tuned: Config, checkpoint: Path, tmp_path: Path) -> None:
    """Their vectors come from the encoder that made the codes; each item is found once, and none that was seen."""
    titles = ["Bright (2020)", "Bright (2020)", "星 (2021)"]
    write_jsonl(tmp_path / "new.jsonl", [{"title": title, "id": f"n{n}"} for n, title in enumerate(titles)])
    model = Recommender(tuned.run_dir, items=tmp_path / "new.jsonl")
    task = model.first.task
    assert isinstance(task, GenerativeTask) and list(task.ids.items)[-3:] == ["n0", "n1", "n2"]
    vectors = text_vectors(str(checkpoint), task.catalogue.texts[-3:])
    assert (task.ids.codes[-3:, 0] == task.ids.quantizer.codes(vectors)[0][:, 0]).all()
    (answer,) = model.recommend([Request(instruction="a good film war", history=["item-3"])], k=14, evidence=False)
    items = [each.item for each in answer.recommendations]
    assert len(items) == len(set(items)) == 14 and {"n0", "n1", "n2"} < set(items) and "item-3" not in items
    (Path(tuned.run_dir) / "backbone" / "semantic_ids" / "encoder.json").write_text('{"encoder": "nowhere/nothing"}')
    with pytest.raises((ValueError, OSError), match="nowhere/nothing"):
        Recommender(tuned.run_dir, items=tmp_path / "new.jsonl")


def test_codes_of_another_catalogue_are_refused(folder: Path, tuned: Config, tmp_path: Path) -> None:
    lines = (Path(tuned.backbone.path) / "semantic_ids" / "codes.jsonl").read_text().splitlines()
    other = tmp_path / "network"
    other.mkdir()
    for file in Path(tuned.backbone.path).iterdir():
        if file.is_file():
            (other / file.name).symlink_to(file)
    config = tiny_run("retrieval", other, tmp_path, task=tuned.task)
    with pytest.raises(ValueError, match="has no semantic_ids/codes.jsonl: make a network.*prepare ids"):
        train(config)
    (other / "semantic_ids").mkdir()
    (other / "semantic_ids" / "codebooks.safetensors").symlink_to(
        Path(tuned.backbone.path) / "semantic_ids" / "codebooks.safetensors"
    )
    (other / "semantic_ids" / "codes.jsonl").write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    with pytest.raises(ValueError, match="has the codes of other items than the catalog "):
        train(config)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"beams": 3}, "task.beams is 3, but task.cutoffs asks for the best 20"),
        ({"history_limit": -1}, "task.history_limit should be at least 0"),
        ({"max_target_length": 5}, "task.max_target_length is known from the semantic ids"),
    ],
)
def test_wrong_settings_are_named(
    changes: dict[str, int], problem: str, folder: Path, tuned: Config, tmp_path: Path
) -> None:
    task = GenerativeConfig(catalogue=str(folder / "catalogue"), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=problem):
        train(tiny_run("retrieval", Path(tuned.backbone.path), tmp_path, task=task))


def test_the_benchmark_of_the_search_runs(
    tuned: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "scripts" / "benchmark_codes.py"
    monkeypatch.setattr(sys, "argv", [str(script), tuned.run_dir, "--cases", "3", "--rounds", "1"])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert "3 prompts, 20 beams, 3 levels, 12 items" in said and "\nratio " in said
