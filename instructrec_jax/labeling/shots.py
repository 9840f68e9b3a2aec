"""What few labels are worth: the same backbone, tuned in several ways on n training examples of each label.

Each arm (a way, a number of examples, a seed) runs in a process of its own, so that its peak memory is its own, and its
result is a file, so that a run that was ended goes on with the next arm.
"""

import os
import resource
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import jax
import numpy as np

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.prompts import render
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.host_memory import keep_freed_memory
from instructrec_jax.files import read_json, write_json, write_jsonl
from instructrec_jax.runs.config import DEFAULT, Config, parse, to_dict
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run, is_run, run_settings
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.tasks import SetFitConfig, VectorClassificationConfig
from instructrec_jax.tasks.logistic import logistic_regression
from instructrec_jax.tasks.text.text_config import ONE_LABEL, ClassificationConfig
from instructrec_jax.training.training_config import CheckpointConfig, TrackingConfig

ArmName = Literal["logistic", "prototypes", "head", "lora", "full", "fitted", "setfit"]
ARMS: dict[ArmName, str] = {
    "logistic": "logistic head on frozen vectors",
    "prototypes": "nearest class mean of frozen vectors",
    "head": "head alone, by the step",
    "lora": "LoRA",
    "full": "full fine-tuning",
    "fitted": "full fine-tuning from a logistic head",
    "setfit": "SetFit",
}
FROZEN = ("logistic", "prototypes")  # without steps
BATCH = 16  # examples of a step where the settings have none; SetFit's default
HEAD_RATE, SETFIT_RATE = 1e-2, 2e-5  # SetFit's defaults for a head, and for the pairs
LORA_RATE = 5e-4  # ten times the default of full fine-tuning (Schulman et al., 2025, "LoRA Without Regret")
FULL_RATE = 5e-5  # the default for a pretrained network
RANK = 8  # of LoRA, where the settings have none
Train = Callable[[Config], Path]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
      path: a run directory or a HuggingFace folder; None: `settings` name all.
      settings: as on the command line.
    """

    path: Path | None
    settings: Sequence[str]
    split: Literal["test", "validation"]

    def about(self) -> dict[str, object]:
        """What all results of a folder have in common, as JSON. Raises ValueError for another task."""
        of_run = self.path is not None and is_run(self.path)
        default = cast(Path, self.path) / "config.yaml" if of_run else DEFAULT
        config = parse(Config, list(self.settings), default=default)
        check_task(config)
        return {"path": str(self.path or config.backbone.path), "split": self.split, "settings": to_dict(config)}

    def config(self) -> Config:
        """The settings; their backbone is the pretrained one, also those of a run."""
        config = run_settings(self.path or parse(Config, list(self.settings)).backbone.path, self.settings)
        if self.path is not None and not is_run(self.path):
            config = replace(config, backbone=replace(config.backbone, path=str(self.path)))
        check_task(config)
        return config


@dataclass(frozen=True)
class Arm:
    """One measurement: a way to train, the number of examples of each label, and a seed."""

    name: ArmName
    shots: int
    seed: int

    def __str__(self) -> str:
        return f"{self.name}-{self.shots}-{self.seed}"


@dataclass(frozen=True)
class Found:
    """What an arm found.

    Attributes:
      accuracy: of the cases, 0 to 1.
      seconds: to open the network and train, with compilation; test_seconds: to answer the cases, likewise.
      memory: peak bytes until the arm was trained: of the device if it counts them, else of the process.
      cases: their number.
    """

    accuracy: float
    seconds: float
    test_seconds: float
    memory: int
    cases: int


@dataclass(frozen=True)
class Measured:
    """The result of an arm.

    Attributes:
      accuracy, seconds, test_seconds, memory, cases: see `Found`.
      steps: of the training; 0 for a way without any.
      examples: number of training examples.
      data: fingerprint of data.train.
    """

    arm: Arm
    accuracy: float
    seconds: float
    test_seconds: float
    memory: int
    cases: int
    steps: int
    examples: int
    data: str


def check_task(config: Config) -> None:
    """Raises ValueError for settings whose arms could not be compared."""
    task = config.task
    if not isinstance(task, ClassificationConfig):
        raise ValueError(
            f"--shots compares ways to learn one label per text: task.type {' or '.join(ONE_LABEL)}, not {task.name}."
        )
    if config.data.hold_out:
        raise ValueError("--shots draws examples of every label, but data.hold_out holds some out: leave it out.")
    if any(source.augment for source in config.data.train):
        raise ValueError("--shots counts examples of each label, but a source has augment: leave it out.")


def drawn(labels: np.ndarray, names: Sequence[str], shots: int, seed: int) -> np.ndarray:
    """The numbers of `shots` random examples of each label, int64, ascending; fewer shots are among more of them.

    Args:
      labels: int [examples].

    Raises ValueError for a label with fewer examples.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for number, name in enumerate(names):
        own = order[labels[order] == number][:shots]
        if len(own) < shots:
            raise ValueError(f"--shots {shots}: data.train has {len(own)} examples of the label {name!r}.")
        chosen.append(own)
    return np.sort(np.concatenate(chosen))


def measure(plan: Plan, arm: Arm, folder: Path, train: Train) -> Measured:
    """Trains and evaluates an arm, in this process.

    Args:
      folder: for its files; deleted afterwards.

    Raises ValueError for examples that are not texts with one label, and as `drawn`.
    """
    data = RunData(plan.config())
    names = list(data.config.task.label_names or ())
    source = data.examples("train")
    chosen = drawn(_labels(source, names), names, arm.shots, arm.seed)
    given = [source[int(number)] for number in chosen]
    if not getattr(data.config.data, plan.split):
        raise ValueError(f"--shots evaluates on data.{plan.split}, which lists no sources.")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if arm.name in FROZEN:
            found = _frozen(plan, arm, data, given)
        else:
            found = _trained(plan, arm, data, given, folder, train)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    steps = 0 if arm.name in FROZEN else data.config.steps
    return Measured(arm, **asdict(found), steps=steps, examples=len(given), data=source.fingerprint)


def _labels(examples: Mixture, names: Sequence[str]) -> np.ndarray:
    number = {name: place for place, name in enumerate(names)}
    for example in examples:
        if example.images or example.sounds:
            raise ValueError(f"{example.where}: --shots compares ways to learn from texts, but this is more than one.")
        if example.output not in number:
            raise ValueError(f"{example.where}: its output {example.output!r} is not one of the labels {[*names]}.")
    return np.array([number[str(example.output)] for example in examples], np.int64)


def _frozen(plan: Plan, arm: Arm, data: RunData, given: list[Example]) -> Found:
    """On vectors as `Run.encode` gives them."""
    names, began = list(data.config.task.label_names or ()), time.perf_counter()
    path = data.config.backbone.path
    run = Run.open(path, settings_of(path))
    vectors = run.encode([render(example) for example in given])
    labels = np.array([names.index(str(example.output)) for example in given])
    if arm.name == "logistic":
        guess = logistic_regression(vectors, labels).predict
    else:
        means = _unit(np.stack([_unit(vectors[labels == number]).mean(0) for number in range(len(names))]))

        def guess(asked: np.ndarray) -> np.ndarray:
            """The label whose mean vector is nearest by cosine (Snell et al., 2017, with cosines)."""
            return (_unit(asked) @ means.T).argmax(1)

    seconds, memory, began = time.perf_counter() - began, peak_memory(), time.perf_counter()
    cases = data.examples(plan.split)
    truth = _labels(cases, names)
    right = guess(run.encode([render(example) for example in cases])) == truth
    return Found(float(right.mean()), seconds, time.perf_counter() - began, memory, len(truth))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _trained(plan: Plan, arm: Arm, data: RunData, given: list[Example], folder: Path, train: Train) -> Found:
    began = time.perf_counter()
    file = folder / "train.jsonl"
    write_jsonl(file, (example.to_record() for example in given))
    run_dir = train(arm_config(data.config, arm, file, folder / "run"))
    seconds, memory, began = time.perf_counter() - began, peak_memory(), time.perf_counter()
    config = run_settings(run_dir)
    cases = {plan.split: getattr(data.config.data, plan.split)}
    run = Run.open(run_dir, replace(config, data=replace(config.data, **cases)))
    encoded = run.data.cases(run.task, plan.split)
    accuracy = run.task.score(run.full_predictor, encoded).metrics["accuracy"]
    return Found(accuracy, seconds, time.perf_counter() - began, memory, len(encoded))


def arm_config(config: Config, arm: Arm, file: Path, run_dir: Path) -> Config:
    """The settings that train an arm on the examples of a file, for as many steps as the others.

    Full fine-tuning has the settings' own learning rate; the other ways have theirs, see the constants above. A new
    head has `HEAD_RATE` in all of them, unless the settings have a head_learning_rate.
    """
    labels = list(config.task.label_names or ())
    rate = config.optimizer.learning_rate or FULL_RATE
    rates = {"head": HEAD_RATE, "lora": LORA_RATE, "full": rate, "fitted": rate, "setfit": SETFIT_RATE}
    learned = arm.name in ("lora", "full")  # a new head beside a network; the last two fit theirs
    of_head = (config.optimizer.head_learning_rate or HEAD_RATE) if learned else None
    lora = replace(config.lora, rank=config.lora.rank or RANK) if arm.name == "lora" else LoraConfig()
    pairs = config.task.sentence_pairs if isinstance(config.task, ClassificationConfig) else "auto"
    kind = {"setfit": SetFitConfig, "fitted": VectorClassificationConfig}.get(arm.name)
    task = ClassificationConfig(labels, sentence_pairs=pairs) if kind is None else kind(labels)
    return replace(
        config,
        run_dir=str(run_dir),
        seed=config.seed + arm.seed,
        init_from=None,
        task=task,
        lora=lora,
        backbone=replace(config.backbone, freeze=[], train_last=0 if arm.name == "head" else None),
        data=replace(
            config.data,
            train=[SourceConfig(path=str(file))],
            validation=[],
            test=[],
            batch_size=config.data.batch_size or BATCH,
            batch_rows=None,
        ),
        optimizer=replace(config.optimizer, learning_rate=rates[arm.name], head_learning_rate=of_head),
        evaluation=replace(config.evaluation, every=0, patience=None, metric=None, max_examples=None, segment_by=None),
        checkpoint=CheckpointConfig(every=config.steps),
        tracking=TrackingConfig(tensorboard=False),
    )


def peak_memory() -> int:
    """Peak bytes of the first device if it counts them, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


# ---------------------------------------------------------------- all arms


def measured(plan: Plan, shots: Sequence[int], seeds: int, out: Path, train: Train) -> list[Measured]:
    """All arms; what an earlier call has measured in `out` is read.

    Raises ValueError for an `out` of other settings or data, and as `measure`.
    """
    if not shots or min(shots) < 1 or seeds < 1:
        raise ValueError(f"--shots and --seeds should be at least 1, but are {[*shots]} and {seeds}.")
    if jax.distributed.is_initialized():
        raise ValueError("--shots starts a process for each arm: start it in one process.")
    about, file = plan.about(), out / "plan.json"
    if file.exists() and read_json(file) != about:
        raise ValueError(f"{out} has results of other settings ({file}): choose another --out.")
    write_json(file, about)
    arms = [Arm(name, n, seed) for n in shots for seed in range(seeds) for name in get_args(ArmName)]
    found = []
    for number, arm in enumerate(arms, 1):
        place = out / "arms" / f"{arm}.json"
        if not place.exists():
            print(f"{number} of {len(arms)}: {ARMS[arm.name]}, {arm.shots} per label, seed {arm.seed}", file=sys.stderr)
            write_json(place, asdict(_in_a_process(plan, arm, out, train)))
        kept = cast(dict[str, object], read_json(place))
        found.append(Measured(**{**kept, "arm": arm}))  # type: ignore[arg-type]
    if len({(each.data, each.cases) for each in found}) > 1:
        raise ValueError(f"{out} has results of other training data or other cases: choose another --out.")
    return found


def _in_a_process(plan: Plan, arm: Arm, out: Path, train: Train) -> Measured:
    """`measure` in a process that starts now and ends with it; what it says goes to OUT/logs."""
    from joblib.externals.loky import ProcessPoolExecutor  # as in data.parallel
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    pool = ProcessPoolExecutor(max_workers=1)
    try:
        return cast(Measured, pool.submit(_measure_logged, plan, arm, out, train).result())
    except TerminatedWorkerError as error:
        raise ValueError(f"the process of {arm} was killed, perhaps for lack of memory.") from error
    except KeyboardInterrupt:
        pool.shutdown(kill_workers=True)  # an arm in training takes Ctrl-C for its own, and saves
        raise
    finally:
        pool.shutdown()


def _measure_logged(plan: Plan, arm: Arm, out: Path, train: Train) -> Measured:
    keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # most of the time of a small arm is that of its compilation
        jax.config.update("jax_compilation_cache_dir", str((out / "compiled").absolute()))
    log = out / "logs" / f"{arm}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as said, redirect_stdout(said), redirect_stderr(said):
        return measure(plan, arm, out / "work" / str(arm), train)


def plan_of(options: Namespace, rest: list[str]) -> Plan:
    """The plan of `--shots`. Raises ValueError beside options of another evaluation."""
    others = ("step", "average", "beside", "hybrid", "rerank", "wordings", "lm_eval", "limit", "explanations", "by")
    given = [f"--{name}" for name in others if getattr(options, name)] + [str(path) for path in options.paths[1:]]
    if given:
        raise ValueError(f"--shots trains the pretrained backbone in several ways: leave out {' and '.join(given)}.")
    path: Path = options.paths[0]
    if path.suffix in (".yaml", ".yml"):
        return Plan(None, ["--config_path", str(path), *rest], options.split)
    return Plan(path, rest, options.split)
