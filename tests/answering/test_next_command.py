"""The command that a run ends with works as it is printed."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from instructrec_jax.answering.next_command import next_command
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.predict import main as predict
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import ClassificationConfig, LanguageModelConfig, RetrievalConfig, SimilarityConfig
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.ranking.ranking_task import RankingTask


def run(task: Any, made: Any, trained: bool = True, **data: Any) -> Any:
    config = Config(task=task, data=DataConfig(**data))
    return SimpleNamespace(path=Path("runs/my run"), task=made, trained=trained, config=config)


def case(**fields: Any) -> Encoded:
    return Encoded(np.zeros(0), None, Example(**fields))  # type: ignore[arg-type]


def test_a_classifier_predicts_for_its_own_file(tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    sources = [SourceConfig("nowhere.csv"), SourceConfig(str(file))]
    opened = run(ClassificationConfig(), Task(), test=sources)
    assert "--input FILE --out predictions.csv" in next_command(opened)
    file.touch()
    assert shlex.split(next_command(opened))[2:] == [
        *("instructrec_jax.predict", "runs/my run", "--input", str(file), "--out", "predictions.csv")
    ]


def test_texts_without_candidates_get_vectors() -> None:
    assert "--vectors --out vectors.parquet" in next_command(run(SimilarityConfig(negatives=3), Task()))
    for own in (SimilarityConfig(), SimilarityConfig(labels=["a", "b"])):
        assert "--vectors" not in next_command(run(own, Task()))


def test_the_command_of_a_real_run_works(finished: Config, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(next_command(Run.open(finished.run_dir)))
    assert words[:3] == ["python", "-m", "instructrec_jax.predict"]
    predict(words[3:])
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").count("\n") == 13


def test_a_language_model_writes_and_an_untuned_network_is_tuned() -> None:
    cases = [case(instruction="Sum up.", input="..."), case(instruction="Name a river's end.")]
    command = next_command(run(LanguageModelConfig(), Task()), cases)
    assert shlex.split(command)[2:] == ["instructrec_jax.generate", "runs/my run", "--prompt", "Name a river's end."]
    assert "instructrec_jax.predict" in next_command(run(LanguageModelConfig(), Task()), cases[:1])
    pictured = case(
        instruction="What is it?", images=(Picture("0", str(Path.cwd() / "my pics/a.png")), Picture("1", "/b.png"))
    )
    command = next_command(run(LanguageModelConfig(), Task()), [pictured])
    asked = ["--image", "my pics/a.png", "--image", "/b.png", "--prompt", "What is it?"]
    assert shlex.split(command)[2:] == ["instructrec_jax.generate", "runs/my run", *asked]
    inline = case(instruction="What is it?", images=(Picture.of(b"bytes"),))  # which no command line can name
    assert "instructrec_jax.predict" in next_command(run(LanguageModelConfig(), Task()), [inline])
    assert "instructrec_jax.train" in next_command(run(LanguageModelConfig(), Task(), trained=False))
    mute = Task()
    mute.has_answers = False
    assert "instructrec_jax.export" in next_command(run(ClassificationConfig(), mute))


def test_a_recommender_is_asked_for_what_its_catalogue_has() -> None:
    task = RankingTask.__new__(RankingTask)
    task.catalogue = Catalogue(["a", "b", "c"], ["Alien", "Twin", "Twin"], ["x", "y", "z"])
    opened = run(RetrievalConfig(), task)

    def asked(*cases: Encoded) -> list[str]:
        return shlex.split(next_command(opened, cases))[3:]

    assert asked() == ["runs/my run", "--history", "Alien"]
    assert asked(case(instruction="something gloomy")) == ["runs/my run", "--instruction", "something gloomy"]
    assert asked(case(instruction="next", history=("c", "b", "a"))) == [
        *("runs/my run", "--history", "id:b", "--history", "Alien")
    ]
