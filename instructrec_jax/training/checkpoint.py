"""Checkpoints of a run, kept by orbax: the state, the position in the data and the run's progress."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from instructrec_jax.distributed.launch import is_loss_of_another


@dataclass
class CheckpointConfig:
    """When to save, and what to keep."""

    every: int = 100  # steps between checkpoints (the last step is always saved)
    keep_last: int = 2  # newest checkpoints to keep
    keep_best: int = 1  # checkpoints with the best evaluation metric to keep


class Checkpoints:
    """The checkpoints below `run_dir/checkpoints`.

    Each holds three items: `state` (all arrays), `progress` (JSON: position in the data, best metric so far) and
    `config` (JSON). A save is written aside and renamed, so a killed process never leaves half a checkpoint; it
    runs in the background.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig | None = None, greater_is_better: bool = True):
        """Opens the checkpoints for writing; with no `config`, for reading only."""
        for name in ("absl", "asyncio"):  # what orbax logs there as an error it also raises
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = (run_dir / "checkpoints").absolute()
        if config is None:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:

            def rank(metrics: dict[str, float]) -> Any:
                # Of equal metrics the earliest is the best, as it is for early stopping.
                return (metrics["metric"] if greater_is_better else -metrics["metric"], -metrics["step"])

            latest = preservation_policy.LatestN(config.keep_last)
            best = preservation_policy.BestN(
                get_metric_fn=rank, n=config.keep_best, keep_checkpoints_without_metrics=False
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy([latest, best]),
                best_fn=rank,  # without it the metrics stay in memory, and a resumed run would delete its best
                cleanup_tmp_directories=True,
            )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: Any, progress: dict[str, Any], config: Any, metric: float | None) -> None:
        """Starts to save; `metric` is what `keep_best` compares (None: not evaluated at this step)."""
        if step in self.manager.all_steps():
            return
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    progress=ocp.args.JsonSave(progress),
                    config=ocp.args.JsonSave(config),
                ),
                metrics=None if metric is None or not math.isfinite(metric) else {"metric": metric, "step": step},
                force=True,
            )
        except (OSError, ValueError) as error:  # tensorstore's error for a full disk is a ValueError
            if is_loss_of_another(error):
                raise
            raise self._disk_error(error) from error

    def restore(self, step: int, like: Any) -> Any:
        """Reads the state, or a part of it, onto the shardings of `like`, whatever mesh wrote it.

        Args:
          like: pytree of jax.ShapeDtypeStruct with shardings; a dict with some of the state's fields reads just those.

        Raises:
          ValueError: the checkpoint is of another model.
        """
        how = ocp.checkpoint_utils.construct_restore_args(like)
        item = ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=isinstance(like, dict))
        try:
            return self.manager.restore(step, args=ocp.args.Composite(state=item))["state"]
        except (ValueError, KeyError, TypeError) as error:
            if is_loss_of_another(error):
                raise
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} does not fit this configuration's model: {error}\n"
                "Use the configuration that wrote it (config.yaml in the run directory), or another run_dir. If its "
                "files are damaged, delete this folder to go on from an earlier checkpoint."
            ) from error

    def progress(self, step: int) -> dict[str, Any]:
        return self.manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]

    def best_step(self) -> int:
        """The step whose metric was best so far; the newest where none was evaluated or the best is gone."""
        steps = self.steps()
        if not steps:
            raise ValueError(f"{self.folder} holds no complete checkpoint: the run stopped before its first save.")
        best = self.progress(steps[-1])["best_step"]
        return best if best in steps else steps[-1]

    def close(self) -> None:
        """Returns when everything is on disk."""
        try:
            self.manager.wait_until_finished()
            self.manager.close()
        except (OSError, ValueError) as error:  # tensorstore's error for a full disk is a ValueError
            if is_loss_of_another(error):
                raise
            raise self._disk_error(error) from error

    def _disk_error(self, error: Exception) -> OSError:
        return OSError(
            f"a checkpoint could not be written below {self.folder}: {error}. Earlier checkpoints are whole: free some "
            "space and start again with the same command to go on from the last one."
        )


def abstract(tree: Any, shardings: Any) -> Any:
    """jax.ShapeDtypeStructs of a tree, with shardings: what `restore` reads onto."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
