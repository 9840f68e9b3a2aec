"""The settings of every verb: one tree, made of the config dataclasses of the packages."""

import dataclasses
import logging
import os
import re
import signal
import sys
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeGuard, TypeVar

import draccus
import yaml

import instructrec_jax.tasks as tasks
from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig, Split
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.host_memory import keep_freed_memory
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.metrics.abstention import AbstainConfig
from instructrec_jax.parsing import YamlDumper, parse_yaml, read_yaml
from instructrec_jax.remote import is_url, local_file, with_urls
from instructrec_jax.runs.settings_help import help_topic, settings_help
from instructrec_jax.runs.settings_tree import completed, nearest, plain
from instructrec_jax.tasks.task_config import TaskConfig
from instructrec_jax.training.training_config import (
    CheckpointConfig,
    DistilConfig,
    OptimizerConfig,
    ProfileConfig,
    RobustTrainingConfig,
    SemiSupervisedConfig,
    TrackingConfig,
)

C = TypeVar("C")
InitLora = Literal["merge", "keep"]  # named, because --help shows a setting's comment only beside a plain name
DEFAULT = Path(__file__).parent / "default.yaml"  # the embedded film run: the settings without --config_path


@dataclass
class Config:
    """Settings of a training run; evaluate, export and the other verbs read them from its run directory."""

    run_dir: str = "runs/unnamed"  # folder that the run writes; an interrupted run resumes from it
    # delete the earlier run in run_dir. If the same command with overwrite started that run and did not finish it,
    # resume it instead, so that the command can be repeated after a preemption
    overwrite: bool = False
    # run directory whose tuned parameters this run starts from, in place of backbone.path, with a new optimizer; they
    # are written to RUN_DIR.initial. null: start from backbone.path
    init_from: str | None = None
    # LoRA of init_from: merge: into the backbone; keep: train its matrices further, with the same lora settings
    init_lora: InitLora = "merge"
    seed: int = 0  # random seed of new parameters, shuffling, dropout and negatives
    steps: int = 1000  # training steps, one batch each
    accumulation: int = 1  # gradient accumulation: micro-batches per batch, to save memory; the result stays the same
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    task: TaskConfig = field(default_factory=tasks.RetrievalConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    semi_supervised: SemiSupervisedConfig = field(default_factory=SemiSupervisedConfig)
    robust_training: RobustTrainingConfig = field(default_factory=RobustTrainingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    abstain: AbstainConfig = field(default_factory=AbstainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


class ConfigError(ValueError):
    """A setting that is misspelled, missing or of the wrong type."""


def parse(config_class: type[C], args: list[str], default: Path | None = DEFAULT) -> C:
    """Settings from a YAML file (`FILE.yaml` or `--config_path FILE`) and `--a.b value` overrides.

    Args:
      default: the file to read without one in `args`. The embedded run's file is not read when the arguments set
        task.type, because its data and settings fit its own task only.

    Raises:
      ConfigError: an unknown setting (with the nearest known one), or a value of the wrong type.
    """
    if (topic := help_topic(args)) is not None:
        try:
            print(settings_help(config_class, topic, unknown_key))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        raise SystemExit(0)
    given = _given(args, set(setting_names(config_class)))
    files = [value for name, value in given if name == "config_path"]
    if len(set(files)) > 1:
        raise ConfigError(f"there are two config files, {files[0]} and {files[1]}: give one of them.")
    if default is not None and not files and not (default == DEFAULT and "task.type" in dict(given)):
        files = [str(default)]
    tree = _settings_of(_local(files[-1]), set(setting_names(config_class, lists=True))) if files else {}
    overrides = [(name, value) for name, value in given if name != "config_path"]
    for name, value in overrides:
        _put(tree, name.split("."), _argument(name, value))
    return _decoded(config_class, tree, files[-1] if files else "", [name for name, _ in overrides])


def _local(file: str) -> Path:
    return local_file(file) if is_url(file) else Path(file)


def _decoded(config_class: type[C], tree: dict[str, object], file: str, overrides: Sequence[str]) -> C:
    """The config of a tree of settings. Errors name `file` unless one of `overrides` is at fault."""
    try:
        config: C = draccus.decode(config_class, completed(config_class, _spelled(tree)))
        _check_nulls(config)
    except (draccus.utils.ParsingError, ValueError) as error:
        text = re.sub(r"Could not decode the value into any of the given types: ", "", " ".join(str(error).split()))
        hint = ". They belong to another type: change it in the file." if "are not valid for" in text else ""
        named = re.match(r"`([\w.]+)`", text)
        is_override = named is not None and any(f"{named[1]}.".startswith(f"{name}.") for name in overrides)
        raise ConfigError(f"{f'{file}: ' if file and not is_override else ''}{text}{hint}") from error
    return config


def _given(args: list[str], known: set[str]) -> list[tuple[str, str]]:
    """(name, value) of each `--name value` or `--name=value`, in order."""
    found, rest = [], name_files(args)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ConfigError(
                f"unexpected argument {name!r}: settings are `--name value` or a file `FILE.yaml`; a file of data is "
                f"`--data.train {name}`."
            )
        if name[2:] not in known | {"config_path"}:
            raise ConfigError(unknown_key(name[2:], known | {"config_path"}))
        if not equals:
            if not rest or rest[0].startswith("--") and not _is_number(rest[0]):
                raise ConfigError(f"`{name}` needs a value: `{name} VALUE`.")
            value = rest.pop(0)
        found.append((name[2:], value))
    return found


def name_files(args: Sequence[str]) -> list[str]:
    """The arguments with each `FILE.yaml` that is no option's value as `--config_path FILE.yaml`."""
    named: list[str] = []
    is_value = False
    for arg in args:
        if not is_value and not arg.startswith("--") and Path(arg).suffix in (".yaml", ".yml"):
            named.append("--config_path")
        is_value = arg.startswith("--") and "=" not in arg
        named.append(arg)
    return named


def _argument(name: str, text: str) -> object:
    try:
        return "" if text == "" else parse_yaml(text, f"--{name}")
    except ValueError as error:
        raise ConfigError(f"{error} Quote a text: --{name} '\"...\"'.") from None


def _put(tree: dict[str, object], name: list[str], value: object) -> None:
    """Sets a dotted name, given as a list of its keys, in a tree; a mapping is merged into an existing mapping."""
    first, *rest = name
    old = tree.get(first)
    if rest:
        below: dict[str, object] = old if isinstance(old, dict) else {}
        tree[first] = below
        _put(below, rest, value)
    elif isinstance(value, dict) and isinstance(old, dict):
        for key, entry in value.items():
            _put(old, [key], entry)
    else:
        tree[first] = value


def _spelled(value: object, name: str = "") -> object:
    """The tree with booleans inside lists spelled as in YAML, because they are names there (labels: [true])."""
    if isinstance(value, dict):
        return {key: _spelled(entry, f"{name}.{key}" if name else str(key)) for key, entry in value.items()}
    if not isinstance(value, list):
        return value
    if None in value:
        raise ConfigError(f"`{name}` has a null entry: give it a value, or quote 'null' if it is a text.")
    return [str(entry).lower() if isinstance(entry, bool) else _spelled(entry, name) for entry in value]


def check_names(args: list[str], own: set[str]) -> None:
    """Refuses an argument that is neither a setting nor one of the verb's own options.

    Args:
      own: names of the verb's options, without dashes.

    Raises:
      ConfigError: names the argument, and the nearest setting or option.
    """
    known = {"config_path", *setting_names(Config)}
    for arg in args:
        name = arg[2:].split("=")[0]
        if arg.startswith("--") and name not in known | own:
            raise ConfigError(unknown_key(name, known, own))


def load(settings: str | Path | Mapping[str, object]) -> Config:
    """The settings of a YAML file, such as a run directory's config.yaml, or of a mapping, nested or dotted.

        load("my.yaml")
        load({"task": {"type": "classification"}, "data.train": ["reviews.csv"], "optimizer.learning_rate": 1e-4})

    As on the command line, a mapping without task.type overrides the settings of the embedded run.

    Raises ConfigError for an unknown setting (with the nearest known one), or a value of the wrong type.
    """
    if isinstance(settings, Mapping):
        given: dict[str, object] = {}
        for name, value in settings.items():
            _put(given, str(name).split("."), plain(value))
        _check_sources(given.get("data"))
        _check_keys(given, set(setting_names(Config, lists=True)))
        task = given.get("task")
        tree = {} if isinstance(task, dict) and "type" in task else _default_tree()
        for name, value in given.items():
            _put(tree, [name], value)
        return _decoded(Config, tree, "", [])
    if not isinstance(settings, str | Path):
        raise ConfigError(
            f"settings are the path of a YAML file or a mapping such as {{'steps': 100}}, not {settings!r}."
        )
    return parse(Config, ["--config_path", str(settings)])


def _check_sources(data: object) -> None:
    """Raises ConfigError for examples among the settings, in place of sources."""
    own = {entry.name for entry in dataclasses.fields(SourceConfig)}
    for split in typing.get_args(Split):
        value = data.get(split) if isinstance(data, dict) else None
        entries = value if isinstance(value, list) else [value]
        examples = any(isinstance(e, dict) and e and ("instruction" in e or not own & set(e)) for e in entries)
        if examples or hasattr(value, "columns"):
            raise ConfigError(
                f"`data.{split}` holds examples, but should name sources, such as reviews.csv. Give examples as "
                f"train_run(settings, {split}=[...])."
            )


def _default_tree() -> dict[str, object]:
    return _settings_of(DEFAULT, set(setting_names(Config, lists=True)))


def to_yaml(config: object) -> str:
    return yaml.dump(draccus.encode(config), Dumper=YamlDumper)


def to_dict(config: object) -> dict[str, object]:
    return draccus.encode(config)


def setting_names(
    config_class: type, prefix: str = "", *, lists: bool = False, inside: tuple[type, ...] = ()
) -> list[str]:
    """All dotted names of a config class, branches included.

    Args:
      lists: also the names inside list entries (`data.train.path`), which only a file can set one by one.
      inside: the enclosing classes; recursion stops at a class that contains itself (a task of tasks).
    """
    names = []
    kinds = typing.get_type_hints(config_class)
    for entry in dataclasses.fields(config_class):
        kind = kinds[entry.name]
        names.append(prefix + entry.name)
        choices = [kind]
        if isinstance(kind, type) and issubclass(kind, draccus.ChoiceRegistry):
            choices = list(kind.get_known_choices().values())
            names.append(f"{prefix}{entry.name}.type")
        elif lists and typing.get_origin(kind) is list:
            choices = list(typing.get_args(kind))
        for choice in choices:
            if _is_dataclass(choice) and choice not in inside:
                names += setting_names(choice, f"{prefix}{entry.name}.", lists=lists, inside=(*inside, choice))
    return names


def _is_dataclass(kind: object) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def unknown_key(name: str, known: set[str], own: Collection[str] = ()) -> str:
    """The message for a name that does not exist, with the nearest setting or verb's `own` option."""
    near = nearest(name, known, own)
    hint = f" Did you mean {near!r}?" if near else ""
    if own:
        return f"there is no option {name!r}.{hint} `--help` lists the options, `train --help all` the settings."
    return f"there is no setting {name!r}.{hint} `--help all` lists the settings."


def _is_number(arg: str) -> bool:
    return arg[1:2].isdigit()


def _settings_of(path: Path, known: set[str]) -> dict[str, object]:
    """The settings of a YAML file. Errors name the nearest known setting (draccus names its class only)."""
    if path.is_dir():
        hint = f": name its {path / 'config.yaml'}." if (path / "config.yaml").is_file() else ", not a YAML file."
        raise ConfigError(f"{path} is a folder{hint}")
    if not path.is_file():
        raise ConfigError(f"the config file {path} does not exist.")
    try:
        tree = read_yaml(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must contain settings as `name: value` lines.")

    _check_keys(tree, known, where=f"{path}: ")
    return tree


def _check_keys(tree: dict[str, object], known: set[str], prefix: str = "", where: str = "") -> None:
    """Raises ConfigError for a key that is no setting (draccus names its class only)."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name not in known:
            raise ConfigError(f"{where}{unknown_key(name, known)}")
        for below in value if isinstance(value, list) else [value]:
            if isinstance(below, dict) and any(other.startswith(name + ".") for other in known):
                _check_keys(below, known, name + ".", where)


def _check_nulls(config: object, prefix: str = "") -> None:
    """Refuses null for a setting whose type excludes it, which draccus accepts."""
    if not dataclasses.is_dataclass(config):
        return
    hints = typing.get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        name, value = prefix + entry.name, getattr(config, entry.name)
        if value is None and type(None) not in typing.get_args(hints[entry.name]):
            raise ConfigError(f"`{name}` needs a value, but is null.")
        for below in value if isinstance(value, list) else [value]:
            _check_nulls(below, name + ".")


def _end_stdout() -> None:
    """Flushes stdout; if that fails, what is left goes nowhere, because Python flushes it once more and complains."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Set where a program may have several processes. One that ends before it joins them would keep the others waiting.
SEVERAL = ("NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


def read_first(read: Callable[[list[str]], object]) -> None:
    """Answers `--help` and wrong arguments before a verb imports jax and what else it computes with.

    A verb calls it between two blocks of imports, and `main` reads the same arguments again, which takes milliseconds.
    Where there may be several processes, or there is a URL to fetch, only `main` reads them, unless help is asked for.

    Args:
      read: what `main` reads its arguments with.
    """
    args = sys.argv[1:]
    later = any(name in os.environ for name in SEVERAL) or any("://" in arg for arg in args)
    if help_topic(args) is not None or not later:
        with _shown_errors():
            read(args)


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Ends the program with one paragraph and no traceback for an error that users can fix."""
    try:
        yield
    except BrokenPipeError:  # the reader of stdout has seen enough, as `head`
        _end_stdout()
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError, FloatingPointError) as error:
        print(with_urls(f"error: {error}"), file=sys.stderr)
        _end_stdout()
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def main_guard(main: Callable[[list[str]], object], *, processes: bool = False, independent: bool = False) -> None:
    """Runs a verb with the command line's arguments; an error that users can fix prints one paragraph, no traceback.

    Args:
      processes: whether the verb can run in several processes; it then joins those that the environment names.
      independent: whether the verb runs in several processes without joining them.
    """
    # not above, because they need jax, which settings and --help do not
    from instructrec_jax.distributed import launch
    from instructrec_jax.distributed.program_cache import keep_programs

    keep_freed_memory()
    # print warnings without the source line that raised them
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    logging.basicConfig(format="%(message)s")  # importing orbax makes a handler where there is none, and
    for handler in logging.getLogger().handlers:  # has perhaps made it, which names level and module
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("%(message)s"))
    with _shown_errors():
        if processes:
            launch.initialize()
        elif not independent:
            launch.refuse_others(Path(sys.argv[0]).stem)
        keep_programs()
        with launch.guard():
            main(sys.argv[1:])
            sys.stdout.flush()
