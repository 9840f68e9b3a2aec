"""Settings: defaults, files, overrides and errors."""

import io
import logging
import sys
import warnings
from pathlib import Path

import pandas
import pytest
import yaml

from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.runs.config import (
    DEFAULT,
    SEVERAL,
    Config,
    ConfigError,
    load,
    main_guard,
    parse,
    read_first,
    setting_names,
    to_dict,
    to_yaml,
)
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
    assert [source.path for source in config.data.test] == [source["path"] for source in raw["data"]["test"]]
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


def test_a_yaml_file_is_an_argument_of_its_own(tmp_path: Path) -> None:
    name, path = written(tmp_path, "steps: 7\n")
    assert parse(Config, [path]) == parse(Config, [name, path])
    assert parse(Config, ["--seed", "4", path, "--steps", "8"]).steps == 8
    assert parse(Config, ["--run_dir", "runs/x.yaml"]).run_dir == "runs/x.yaml"  # a value is no file of settings
    with pytest.raises(ConfigError, match="settings.yaml and other.yaml"):
        parse(Config, [path, "--config_path", "other.yaml"])
    with pytest.raises(ConfigError, match="'reviews.csv'"):
        parse(Config, ["reviews.csv"])


@pytest.mark.parametrize("value", ["new.csv", "[new.csv]", "{path: new.csv}", "[{path: new.csv}]"])
def test_a_path_alone_is_a_source(value: str, tmp_path: Path) -> None:
    expected = [SourceConfig(path="new.csv")]
    assert parse(Config, ["--data.test", value]).data.test == expected
    assert parse(Config, written(tmp_path, f"data: {{test: {value}}}\n")).data.test == expected


def test_settings_from_python(tmp_path: Path) -> None:
    nested = {"task": {"type": "classification"}, "data": {"train": [tmp_path / "a.csv"]}, "optimizer": {"beta1": 0.5}}
    dotted = {"task.type": "classification", "data.train": str(tmp_path / "a.csv"), "optimizer.beta1": 0.5}
    config = load(nested)
    assert config == load(dotted) and config.task == ClassificationConfig() and config.steps == Config().steps
    assert config.data.train == [SourceConfig(path=str(tmp_path / "a.csv"))] and config.optimizer.beta1 == 0.5
    assert load({"steps": 3}) == parse(Config, ["--steps", "3"])  # the embedded run, as on the command line
    assert load({"data.train": (SourceConfig("b.csv"),)}).data.train == [SourceConfig("b.csv")]
    with pytest.raises(ConfigError, match=r"'learning_rate'.*'optimizer.learning_rate'"):
        load({"learning_rate": 1})
    with pytest.raises(ConfigError, match="`steps`"):
        load({"steps": "many"})
    with pytest.raises(ConfigError, match="3"):
        load(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        [{"text": "a film", "label": "good"}],
        [Example(instruction="a film", output="good")],
        {"instruction": "a film", "output": "good"},
        pandas.DataFrame({"text": ["a film"]}),
    ],
)
def test_examples_among_the_settings_are_pointed_to_tune(value: object) -> None:
    for settings in ({"data.validation": value}, {"data": {"validation": value}}):
        with pytest.raises(ConfigError, match=r"`data.validation`.*train_run\(settings, validation="):
            load({"task.type": "classification", **settings})


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
        (["--data.test", "null"], "`data.test` needs a value"),
        (["--data.test", "#a.csv"], "`data.test` needs a value"),
        (["--task", "null"], "`task` needs a value"),
        (["--lora", "null"], "`lora` needs a value"),
        (["--data.test", "{path: [a.csv, b.csv]}"], "`data.test.0.path` should be a text"),
        (["--run_dir", "[a]"], "`run_dir` should be a text"),
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
        ("--batch", "data.batch_size"),
        ("--wd", "optimizer.weight_decay"),
        ("--weight-decay", "optimizer.weight_decay"),
        ("--Seed", "seed"),
        ("--num_train_epochs", "steps"),
        ("--output_dir", "run_dir"),
        ("--model_name_or_path", "backbone.path"),
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


def test_a_wrong_task_lists_the_tasks(tmp_path: Path) -> None:
    for arguments in (written(tmp_path, "task: {type: clasification}\n"), ["--task.type", "clasification"]):
        with pytest.raises(ConfigError, match="`task.type`.*'clasification'.*'classification'.*regression.*retrieval"):
            parse(Config, arguments)
    inside = "task: {type: multitask, tasks: [{name: a, task: {type: spn}}]}\n"
    with pytest.raises(ConfigError, match=r"settings.yaml: `task.tasks.0.task.type`.*'span'"):
        parse(Config, written(tmp_path, inside))
    with pytest.raises(ConfigError, match=r"`task`.*\{type: classification\}"):
        parse(Config, ["--task", "classification"])


def test_a_wrong_value_is_blamed_on_the_file_or_on_the_command_line(tmp_path: Path) -> None:
    file = written(tmp_path, "steps: thirty\n")
    with pytest.raises(ConfigError, match="settings.yaml: `steps`"):
        parse(Config, [*file, "--seed", "3"])
    file = written(tmp_path, "steps: 30\ndata: {train: [{path: a, weight: heavy}]}\n")
    with pytest.raises(ConfigError, match="settings.yaml: `data.train.0.weight`"):
        parse(Config, [*file, "--seed", "3"])
    with pytest.raises(ConfigError, match="^`seed`"):
        parse(Config, [*written(tmp_path, "steps: 3\n"), "--seed", "three"])
    with pytest.raises(ConfigError, match=r"^[^\n]*`task.labels`[^\n]*$"):
        parse(Config, written(tmp_path, "task: {type: classification, labels: 3}\n"))


def test_a_file_that_is_not_there() -> None:
    for arguments in (["--config_path", "nowhere.yaml"], ["--config_path=nowhere.yaml"]):
        with pytest.raises(ConfigError, match="nowhere.yaml"):
            parse(Config, arguments)


def test_errors_are_values_errors_so_that_a_verb_prints_them() -> None:
    assert issubclass(ConfigError, ValueError)


# ------------------------------------------------------------------ names


def test_setting_names_go_through_branches_and_choices() -> None:
    names = setting_names(Config)
    for name in ("run_dir", "optimizer", "optimizer.beta1", "task.type", "task.labels", "task.cutoffs"):
        assert name in names


def test_logged_warnings_are_plain_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing orbax gives the root logger a handler that writes WARNING:MODULE: before each."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(sys, "argv", ["verb"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    main_guard(lambda args: logging.getLogger("instructrec_jax.data").warning("a column is unread."))
    assert said.getvalue() == "a column is unread.\n"


def test_a_handler_that_orbax_would_make_is_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["verb"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    main_guard(lambda args: logging.warning("a column is unread."))
    assert said.getvalue() == "a column is unread.\n"


# ------------------------------------------------------------------ arguments before imports


def read_with(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str] | None:
    """What `read_first` reads of a command line; None: nothing."""
    seen: list[str] = []
    monkeypatch.setattr(sys, "argv", ["verb", *line.split()])
    read_first(seen.extend)
    return seen or None


def test_arguments_are_read_first_in_one_process_and_without_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SEVERAL:
        monkeypatch.delenv(name, raising=False)
    assert read_with(monkeypatch, "x.yaml --steps 5") == ["x.yaml", "--steps", "5"]
    assert (
        read_with(monkeypatch, "s3://bucket/run") is None and read_with(monkeypatch, "--data.test=https://a/b") is None
    )
    assert read_with(monkeypatch, "s3://bucket/run --help") == ["s3://bucket/run", "--help"]
    for name in SEVERAL:  # a process that ends before it joins the others would keep them waiting
        with monkeypatch.context() as patched:
            patched.setenv(name, "2")
            assert read_with(patched, "x.yaml") is None and read_with(patched, "--help") == ["--help"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("`steps`: no int."), 2, "error: `steps`: no int.\n"),
        (FileNotFoundError("x.yaml"), 2, "error: x.yaml\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(0), 0, ""),
    ],
)
def test_what_is_wrong_ends_the_verb_as_it_would_later(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: list[str]) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["verb", "--help"])
    for run in (read_first, lambda main: main_guard(main, independent=True)):
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        with pytest.raises(SystemExit) as ended:
            run(fail)
        assert ended.value.code == code and capsys.readouterr().err == said
