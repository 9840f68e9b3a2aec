"""Settings: defaults, files, overrides and errors."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from instructrec_jax.runs.config import DEFAULT, Config, ConfigError, load, parse, setting_names, to_dict, to_yaml
from instructrec_jax.tasks import ClassificationConfig, RetrievalConfig, SpanConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def written(folder: Path, text: str) -> list[str]:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return ["--config_path", str(path)]


# ------------------------------------------------------------------ what is read


def test_no_arguments_give_the_embedded_run() -> None:
    config = parse(Config, [])
    raw = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    assert isinstance(config.task, RetrievalConfig) and config.backbone.path == "films"
    assert config.steps == raw["steps"] and config.task.projection == raw["task"]["projection"]
    assert [source.path for source in config.data.test] == [raw["data"]["test"][0]["path"]]
    assert isinstance(config.optimizer.learning_rate, float)


def test_without_a_default_file_the_dataclasses_speak() -> None:
    assert to_dict(parse(Config, [], default=None)) == to_dict(Config())


def test_another_task_does_not_begin_with_the_embedded_run(tmp_path: Path) -> None:
    config = parse(Config, ["--task.type", "span"])
    assert isinstance(config.task, SpanConfig) and config.data == Config().data and config.backbone == Config().backbone
    path = tmp_path / "a.yaml"
    path.write_text("task: {type: span, stride: 32}\n")
    with pytest.raises(ConfigError, match=r"`stride`.*ChoiceConfig"):
        parse(Config, ["--config_path", str(path), "--task.type", "choice"])


def test_the_copy_to_start_from_is_the_default() -> None:
    assert (CONFIGS[0].parent / "films.yaml").read_bytes() == DEFAULT.read_bytes()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_parses(path: Path) -> None:
    config = parse(Config, ["--config_path", str(path)])
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.run_dir == raw["run_dir"] and config.steps == raw["steps"]
    assert len(config.data.train) == len(raw["data"]["train"]) > 0
    assert path.read_text(encoding="utf-8").startswith("# ")  # says what it is for


def test_arguments_override_the_file_and_the_last_one_counts(tmp_path: Path) -> None:
    file = written(tmp_path, "steps: 7\nseed: 3\noptimizer: {learning_rate: 0.5, weight_decay: 0.25}\n")
    config = parse(Config, [*file, "--optimizer.learning_rate", "1e-4", "--steps=9", "--seed", "4", "--seed", "5"])
    assert (config.steps, config.seed) == (9, 5)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 0.25)
    assert config.optimizer.beta1 == Config().optimizer.beta1


def test_values_of_every_kind(tmp_path: Path) -> None:
    file = written(tmp_path, "task: {type: classification, labels: [bad, good]}\nmesh: {data: null}\n")
    config = parse(
        Config,
        [
            *file,
            *("--overwrite", "true", "--optimizer.clip_norm", "null", "--evaluation.patience", "3"),
            *("--optimizer.decay_exclude", "[bias$, norm]", "--data.train", "[{path: a.jsonl, weight: 2}]"),
            *("--optimizer.schedule", "linear", "--evaluation.segment_by", "wording"),
        ],
    )
    assert isinstance(config.task, ClassificationConfig) and config.task.labels == ["bad", "good"]
    assert config.overwrite is True and config.optimizer.clip_norm is None and config.evaluation.patience == 3
    assert config.optimizer.decay_exclude == ["bias$", "norm"] and config.mesh.data is None
    assert config.data.train[0].path == "a.jsonl" and config.data.train[0].weight == 2.0
    assert config.optimizer.schedule == "linear" and config.evaluation.segment_by == "wording"


def test_a_config_survives_its_yaml(tmp_path: Path) -> None:
    config = parse(Config, ["--optimizer.clip_norm", "null", "--task.cutoffs", "[5, 10]", "--seed", "11"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = load(path)
    assert again == config and to_yaml(again) == to_yaml(config)
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)


SPELLED = ["yes", "no", "on", "off", "y", "n", "true", "1_000", "12:30", "2024-05-01", "0o8", "=", "none", "None"]


@pytest.mark.parametrize("how", ["file", "argument"])
def test_labels_stay_as_they_are_written(how: str, tmp_path: Path) -> None:
    labels = f"[{', '.join(SPELLED)}]"
    if how == "file":
        config = parse(Config, written(tmp_path, f"task: {{type: classification, labels: {labels}}}\n"))
    else:
        config = parse(Config, ["--task.type", "classification", "--task.labels", labels])
    assert config.task.labels == SPELLED
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load(path) == config


def test_numbers_as_yaml_1_2_has_them(tmp_path: Path) -> None:
    text = "optimizer: {learning_rate: 1e-4, clip_norm: .5, weight_decay: 0}\nsteps: 010\noverwrite: true\n"
    config = parse(Config, written(tmp_path, text))
    assert (config.optimizer.learning_rate, config.optimizer.clip_norm, config.steps) == (1e-4, 0.5, 10)
    with pytest.raises(ConfigError, match="`overwrite`"):
        parse(Config, written(tmp_path, "overwrite: yes\n"))


def test_arguments_join_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "lora: {rank: 2, alpha: 3}\noptimizer: null\n")
    config = parse(Config, [*file, "--lora", "{rank: 4}", "--optimizer.learning_rate=-1", "--run_dir", "-x"])
    assert (config.lora.rank, config.lora.alpha, config.optimizer.learning_rate, config.run_dir) == (4, 3, -1, "-x")


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--steps"], "--steps"),
        (["--steps", "--seed", "1"], "--steps"),
        (["steps", "3"], "'steps'"),
        (["--task.labels", "[a"], "--task.labels"),
        (["--run_dir", "a: b: c"], "--run_dir"),
        (["--task.type", "classification", "--task.labels", "[a, null]"], "task.labels"),
        (["--data.train", "[" * 200 + "]" * 200], "data.train"),
        (["--lora", "{rank: 1, rank: 2}"], "--lora.*'rank'"),
    ],
)
def test_an_argument_that_cannot_be_read_is_named(arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(Config, arguments)


@pytest.mark.parametrize(
    ("argument", "right"),
    [
        ("--optimizer.learning_rat", "optimizer.learning_rate"),
        ("--optimiser.learning_rate", "optimizer.learning_rate"),
        ("--learning_rate", "optimizer.learning_rate"),
        ("--batch_size=3", "data.batch_size"),
        ("--stepz", "steps"),
        ("--task.temprature", "task.temperature"),
        ("--lr", "optimizer.learning_rate"),
        ("--epochs", "steps"),
    ],
)
def test_a_misspelled_argument_suggests_the_right_one(argument: str, right: str) -> None:
    name = argument[2:].split("=")[0]
    with pytest.raises(ConfigError, match=f"'{name}'.*'{right}'"):
        parse(Config, [argument, "1"])


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("stepz: 3", "stepz", "steps"),
        ("optimizer: {learning_rte: 1}", "optimizer.learning_rte", "optimizer.learning_rate"),
        ("learning_rate: 1", "learning_rate", "optimizer.learning_rate"),
        ("optimizr: {learning_rate: 1}", "optimizr", "optimizer"),
        ("data: {train: [{pth: x}]}", "data.train.pth", "data.train.path"),
        (
            "data: {test: [{path: x}, {path: y, fields: {ouput: a}}]}",
            "data.test.fields.ouput",
            "data.test.fields.output",
        ),
    ],
)
def test_a_misspelled_key_of_a_file_suggests_the_right_one(text: str, wrong: str, right: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"settings.yaml.*'{wrong}'.*'{right}'"):
        parse(Config, written(tmp_path, text))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--steps", "many"], "steps"),
        (["--steps", "1.5"], "steps"),
        (["--steps", "null"], "steps"),
        (["--optimizer.learning_rate", "fast"], "optimizer.learning_rate"),
        (["--overwrite", "maybe"], "overwrite"),
        (["--mesh.fsdp", "two"], "mesh.fsdp"),
        (["--task.cutoffs", "[ten]"], "task.cutoffs"),
        (["--data.train", "3"], "data.train"),
        (["--optimizer", "3"], "optimizer"),
    ],
)
def test_a_wrong_type_is_named(arguments: list[str], name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}"):
        parse(Config, arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: many", "`steps`"),
        ("steps: null", "`steps`"),
        ("optimizer: {schedule: sideways}", "`optimizer.schedule`.*cosine"),
        ("optimizer: 3", "`optimizer`"),
        ("optimizer: null", "`optimizer`"),
        ("task: {labels: [a, b]}", "type"),
        ("task: {type: clasification}", "clasification"),
        ("task: {type: classification, cutoffs: [1]}", "cutoffs"),
        ("- 3", "settings.yaml"),
        ("", "settings.yaml"),
        ("a: [", "settings.yaml, line 2"),
    ],
)
def test_a_bad_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(Config, written(tmp_path, text))


def test_a_file_that_is_not_there() -> None:
    for arguments in (["--config_path", "nowhere.yaml"], ["--config_path=nowhere.yaml"]):
        with pytest.raises(ConfigError, match="nowhere.yaml"):
            parse(Config, arguments)


def test_errors_are_values_errors_so_that_a_verb_prints_them() -> None:
    assert issubclass(ConfigError, ValueError)


# ------------------------------------------------------------------ help


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(Config, ["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    names = setting_names(Config)
    assert len(names) > 60 and len(set(names)) >= 50
    for name in names:
        assert f"--{name} " in text, name
    # The comments beside the settings are the explanations.
    for comment in ("peak learning rate of the head", "examples per step, over all devices", "initial temperature"):
        assert comment in text


def test_every_setting_has_an_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Config, ["--help"])
    lines = capsys.readouterr().out.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("  --")]
    sections = {f"--{name}" for name in setting_names(Config)} & {
        f"--{name.rsplit('.', 1)[0]}" for name in setting_names(Config) if "." in name
    }
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        entry: Any = " ".join(" ".join(lines[start:stop]).split())
        name = entry.split()[0]
        if name not in sections:
            assert len(entry.split()) > 4, entry


def test_setting_names_go_through_branches_and_choices() -> None:
    names = setting_names(Config)
    for name in ("run_dir", "optimizer", "optimizer.beta1", "task.type", "task.labels", "task.cutoffs"):
        assert name in names
