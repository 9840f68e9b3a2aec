"""Checkpoints of a run (orbax): the train state, the run's progress and its configuration."""

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict, TypeVar

import jax
import orbax.checkpoint as ocp
import xxhash
from orbax.checkpoint.checkpoint_managers import preservation_policy

from instructrec_jax.distributed.launch import is_loss_of_another
from instructrec_jax.files import read_json, write_json
from instructrec_jax.training.progress import Progress
from instructrec_jax.training.training_config import CheckpointConfig

logger = logging.getLogger(__name__)
T = TypeVar("T")
CHECKSUMS = "checksums.json"  # in the folder `state`: file -> xxh3 of its bytes


class Exchange(Protocol):
    """How the files of a checkpoint come together where processes do not share a disk."""

    def prepare(self, folder: Path) -> None:
        """Called in each process before it writes its files of a checkpoint to `folder`."""

    def send(self, folder: Path) -> None:
        """Called in each process after its files of the checkpoint were written to `folder`."""

    def receive(self, folder: Path) -> None:
        """Called in the first process after all have sent; adds the others' files to its `folder`."""


class _Sending:
    """The last of orbax's futures of a save: it waits for them in order, then for all processes."""

    def __init__(self, exchange: Exchange, folder: Path):
        self.exchange, self.folder = exchange, folder

    def result(self, timeout: float | None = None) -> None:
        self.exchange.send(self.folder)

    def cancel(self) -> None:
        pass


class _ArraysHandler(ocp.PyTreeCheckpointHandler):
    """orbax's handler, which also writes checksums: neither orbax nor OCDBT checksums the arrays."""

    def __init__(self, exchange: Exchange | None = None):
        super().__init__()
        self._exchange = exchange

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        if self._exchange is None:
            return await super().async_save(directory, *args, **kwargs)
        folder = Path(getattr(directory, "path", directory))
        self._exchange.prepare(folder)
        futures = await super().async_save(directory, *args, **kwargs)
        return [*(futures or ()), _Sending(self._exchange, folder)]

    def finalize(self, directory: PathLike[str]) -> None:
        """Called on process 0, in the background, after all files are written and before the checkpoint is final."""
        folder = Path(directory)
        if self._exchange is not None:
            self._exchange.receive(folder)
        super().finalize(directory)
        write_json(folder / CHECKSUMS, checksums(folder))


@ocp.args.register_with_handler(_ArraysHandler, for_save=True)
@dataclass
class _ArraysSave(ocp.args.PyTreeSave):
    pass


@ocp.args.register_with_handler(_ArraysHandler, for_restore=True)
@dataclass
class _ArraysRestore(ocp.args.PyTreeRestore):
    pass


class _Metrics(TypedDict):
    """The metric of a checkpoint, for `keep_best`."""

    metric: float
    step: int
    measure: NotRequired[str | None]


class Checkpoints:
    """The checkpoints below `run_dir/checkpoints`.

    Each has three items: `state` (all arrays), `progress` (see `Progress`) and `config` (JSON). Saves run in the
    background and are atomic: a checkpoint is written to a temporary folder and renamed. Reads verify the checksums
    that were saved with the arrays.
    """

    def __init__(
        self,
        run_dir: Path,
        config: CheckpointConfig | None = None,
        greater_is_better: bool = True,
        measure: str | None = None,
        exchange: Exchange | None = None,
    ):
        """Opens the checkpoints for writing; without `config`, for reading only.

        Args:
          exchange: for processes without a shared disk; None: all write to the same one.
          measure: what the metric measures, see `Progress`; checkpoints with the metric of another measure rank
            last for `keep_best`.
        """
        for name in ("absl", "asyncio"):  # orbax also raises the errors that it logs there
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = (run_dir / "checkpoints").absolute()
        self.measure = measure
        self._verified: set[int] = set()
        if config is None:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:

            def rank(metrics: _Metrics) -> tuple[bool, float, int]:
                # Among equal metrics the latest is the best, as in `Progress`.
                current = metrics.get("measure") in (None, measure)
                return (current, metrics["metric"] if greater_is_better else -metrics["metric"], metrics["step"])

            latest = preservation_policy.LatestN(config.keep_last)
            best = preservation_policy.BestN(
                get_metric_fn=rank, n=config.keep_best, keep_checkpoints_without_metrics=False
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy([latest, best]),
                best_fn=rank,  # makes orbax write the metrics: without them a resumed run would delete its best
                cleanup_tmp_directories=True,
            )
        handlers = {
            "state": _ArraysHandler(exchange),
            "progress": ocp.JsonCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
        }
        self.manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def save(
        self, step: int, state: object, progress: Progress, config: Mapping[str, object], metric: float | None
    ) -> None:
        """Starts to save in the background.

        Args:
          metric: the value that `keep_best` compares; None: not evaluated at this step.

        Raises OSError where the checkpoint cannot be written.
        """
        if step in self.manager.all_steps():
            return
        scored = metric is not None and math.isfinite(metric)
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=_ArraysSave(state),
                    progress=ocp.args.JsonSave(progress.to_json()),
                    config=ocp.args.JsonSave(config),
                ),
                metrics={"metric": metric, "step": step, "measure": self.measure} if scored else None,
                force=True,
            )
        except (OSError, ValueError) as error:  # tensorstore's error for a full disk is a ValueError
            if is_loss_of_another(error):
                raise
            raise self._disk_error(error) from error

    def restore(self, step: int, like: T) -> T:
        """Restores the state, or some of its fields, onto the shardings of `like`, from any mesh.

        Args:
          like: pytree of jax.ShapeDtypeStruct with shardings; a dict with some of the state's fields restores these.

        Raises:
          ValueError: the checkpoint is damaged, or belongs to another model.
        """
        self._verify(step)
        how = ocp.checkpoint_utils.construct_restore_args(like)
        item = _ArraysRestore(like, restore_args=how, partial_restore=isinstance(like, dict))
        try:
            state = self.manager.restore(step, args=ocp.args.Composite(state=item))["state"]
            for path, leaf in jax.tree_util.tree_leaves_with_path(state):
                if isinstance(leaf, jax.ShapeDtypeStruct):  # orbax leaves a missing array abstract
                    raise KeyError(f"array missing: {jax.tree_util.keystr(path)}")
            return state
        except (ValueError, KeyError, TypeError) as error:
            if is_loss_of_another(error):
                raise
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} does not match the model of this configuration: {error}\n"
                "Use the configuration that wrote it (config.yaml in the run directory; of an earlier version: see "
                "CHANGELOG.md), or another run_dir."
            ) from error

    def progress(self, step: int) -> Progress:
        """The progress saved with a checkpoint. Raises ValueError where it is missing or damaged."""
        try:
            value = self.manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
            return Progress.from_json(value, "progress")
        except (ValueError, KeyError, OSError) as error:
            if is_loss_of_another(error):
                raise
            raise self._damaged(step, str(error)) from error

    def best_step(self) -> int:
        """The step with the best metric; the newest step without an evaluation, or where the best was deleted.

        Raises ValueError without any complete checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise ValueError(f"{self.folder} has no complete checkpoint: the run stopped before its first save.")
        best = self.progress(steps[-1]).best_step
        return best if best in steps else steps[-1]

    def close(self) -> None:
        """Waits for pending saves and closes. Raises OSError where a checkpoint cannot be written."""
        try:
            self.manager.wait_until_finished()
            self.manager.close()
        except (OSError, ValueError) as error:  # tensorstore's error for a full disk is a ValueError
            if is_loss_of_another(error):
                raise
            raise self._disk_error(error) from error

    def _verify(self, step: int) -> None:
        """Compares the array files with their checksums; each process checks its share of the files."""
        folder = self.folder / str(step) / "state"
        if step in self._verified:
            return
        try:
            expected = read_json(folder / CHECKSUMS, dict[str, str])
        except FileNotFoundError:
            if not folder.is_dir():
                raise self._damaged(step, "its folder `state` is missing") from None
            logger.warning("%s has no checksums (version 0.1 wrote none): its files are not verified.", folder)
            return
        except ValueError as error:
            raise self._damaged(step, str(error)) from error
        mine = sorted(expected)[jax.process_index() :: jax.process_count()]
        found = checksums(folder, mine)
        wrong = [name for name in mine if found.get(name) != expected[name]]
        if wrong:
            raise self._damaged(step, f"{', '.join(wrong[:3])} in `state` changed since the save or is missing")
        self._verified.add(step)

    def _damaged(self, step: int, problem: str) -> ValueError:
        older = [other for other in self.steps() if other < step]
        remedy = f"there is no older checkpoint. Restore it from a backup, or delete {self.folder} to start over."
        if older:
            remedy = (
                f"delete that folder to resume from the checkpoint at step {older[-1]}, or use the older checkpoint "
                f"with `--step {older[-1]}`."
            )
        return ValueError(f"the checkpoint {self.folder / str(step)} is damaged ({problem}); {remedy}")

    def _disk_error(self, error: Exception) -> OSError:
        return OSError(
            f"a checkpoint could not be written to {self.folder}: {error}. Earlier checkpoints are intact: free disk "
            "space and run the same command to resume from the last one."
        )


def checksums(folder: Path, names: list[str] | None = None) -> dict[str, str]:
    """xxh3 of the files below a folder (`names` None: all files) by relative path; missing files are left out."""
    if names is None:
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as threads:
        return {
            name: found
            for name, found in zip(names, threads.map(_checksum, [folder / n for n in names]), strict=True)
            if found is not None
        }


def _checksum(path: Path) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            found, buffer = xxhash.xxh3_64(), bytearray(1 << 18)  # stays in the processor's cache
            while count := file.readinto(buffer):
                found.update(memoryview(buffer)[:count])
    except FileNotFoundError:
        return None
    return found.hexdigest()


def abstract(tree: T, shardings: object) -> T:
    """The tree as jax.ShapeDtypeStructs with shardings: the restore target of `Checkpoints.restore`."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
