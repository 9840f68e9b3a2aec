"""`--help` of settings: one screen, one group, one task, everything."""

import pytest

from instructrec_jax.preparation.formats import SOURCES
from instructrec_jax.runs.config import Config, ConfigError, parse, setting_names
from instructrec_jax.runs.settings_help import COMMON
from instructrec_jax.tasks.task_config import TaskConfig


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, of: type = Config) -> list[str]:
    with pytest.raises(SystemExit) as stopped:
        parse(of, list(arguments))
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    return lines


def entries(lines: list[str]) -> dict[str, str]:
    """name -> explanation."""
    starts = [n for n, line in enumerate(lines) if line.startswith("  --")]
    found = [" ".join(" ".join(lines[a:b]).split()) for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]
    return {entry.split()[0][2:]: " ".join(entry.split()[1:]) for entry in found}


def test_help_is_one_screen_with_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "--help")
    assert len(lines) <= 45 and list(entries(lines))[: len(COMMON)] == list(COMMON)
    text = " ".join(" ".join(lines).split())
    for words in ("train my.yaml", "--help all", "--help task.classification", "(default: 1000)", "classification"):
        assert words in text
    assert shown(capsys, "x.yaml", "-h") == lines


def test_help_on_everything_explains_every_setting_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "--help", "all")
    text, found = " ".join(" ".join(lines).split()), entries(lines)
    names = setting_names(Config)
    assert len(names) > 60
    for name in names:
        assert f"--{name} " in text, name
        if not any(other.startswith(f"{name}.") for other in names):
            assert len(found[name].split()) > 3, name
    for comment in ("peak learning rate of the head", "examples per step, over all devices", "initial temperature"):
        assert comment in text  # the comments beside the settings are the explanations
    assert text.count("examples per step, over all devices") == 1
    assert "Each entry of data.train, data.validation, data.test" in text and "fields.instruction" in text


@pytest.mark.parametrize("task", ["classification", "retrieval", "multitask"])
def test_help_on_a_task_shows_its_settings_only(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = entries(shown(capsys, "--help", f"task.{task}"))
    assert set(found) == {name for name in setting_names(TaskConfig.get_choice_class(task), "task.")}


def test_help_on_a_group_on_one_setting_and_on_the_types_of_task(capsys: pytest.CaptureFixture[str]) -> None:
    names = set(entries(shown(capsys, "--help", "optimizer")))
    assert names == {name for name in setting_names(Config) if name.startswith("optimizer.")}
    data = shown(capsys, "--help", "data")
    assert "data.hold_out.labels" in entries(data) and any("data.train, data.validation" in line for line in data)
    assert set(entries(shown(capsys, "--help=data.batch_size"))) == {"data.batch_size"}
    assert any("classification" in line for line in shown(capsys, "--help", "task"))
    with pytest.raises(ConfigError, match="'optimizer'"):
        parse(Config, ["--help", "optimzer"])


def test_settings_of_a_second_base_class_are_explained_as_there(capsys: pytest.CaptureFixture[str]) -> None:
    """`choice` has the settings of tasks that choose, and those of language models."""
    own, above, beside = (
        entries(shown(capsys, "--help", f"task.{name}")) for name in ("choice", "similarity", "dialogue")
    )
    assert own["task.labels"] == above["task.labels"] and own["task.z_loss"] == beside["task.z_loss"]
    assert "weight of logsumexp" in own["task.z_loss"]


def test_help_on_a_format_of_prepare_shows_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = entries(shown(capsys, "--help", of=SOURCES["table"]))
    assert set(found) == set(setting_names(SOURCES["table"]))
