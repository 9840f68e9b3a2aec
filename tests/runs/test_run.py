"""The settings of a run with overrides."""

from dataclasses import replace
from pathlib import Path

from tiny_runs import changed, write_settings

from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import run_settings


def test_another_file_is_read_as_the_runs_own(tmp_path: Path) -> None:
    own = FieldsConfig(instruction="review", output="stars")
    train = SourceConfig("train.csv", fields=own, task="sentiment", weight=2.0)
    settings = changed(Config(), data__train=[train], data__test=[SourceConfig("test.csv")])
    write_settings(settings, tmp_path / "config.yaml")
    assert run_settings(tmp_path).data == settings.data
    assert run_settings(tmp_path, ["--data.test", "new.csv"]).data.test == [
        SourceConfig("new.csv", fields=own, task="sentiment")
    ]
    named = "[{path: new.csv, task: other, fields: {instruction: text}}, more.csv]"
    assert run_settings(tmp_path, [f"--data.validation={named}"]).data.validation == [
        SourceConfig("new.csv", fields=FieldsConfig(instruction="text"), task="other"),
        replace(train, path="more.csv", weight=None),
    ]
