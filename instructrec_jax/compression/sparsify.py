"""A run with zeros among its weights: `python -m instructrec_jax.compress RUN --sparsity 50%`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from flax import nnx

from instructrec_jax.compression.compress import (
    calibration_batches,
    calibration_cases,
    check_limit,
    declare,
    finish,
    opened,
    partial_folder,
    plain,
    save_checkpoint,
    texts_of,
)
from instructrec_jax.compression.measure import Quality, loss_batches, loss_on, quality
from instructrec_jax.compression.prune import settled_dense
from instructrec_jax.compression.sparsity import METHODS, Method, Sparsity, sparsified
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.launch import place
from instructrec_jax.runs.bucket import local_run
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` found.

    Attributes:
      dense: the task's loss on the calibration examples before; None: not known.
      losses: method -> the loss with its zeros, the chosen method first.
      quality: None without cases.
    """

    dense: float | None
    losses: dict[Method, float]
    quality: Quality | None


def sparsify(
    path: str | Path,
    out: str | Path,
    how: Sparsity,
    *,
    settings: Sequence[str] = (),
    step: int | None = None,
    calibration: int = 128,
    limit: float | None = None,
) -> Sparsified:
    """Writes the network of a run or a HuggingFace folder with zeros among its weights as the new run directory `out`.

    Arguments and errors as `compress.compress`.
    """
    path, out = local_run(path), Path(out)
    dense = opened(path, out, settings, step, limit)
    if not hasattr(dense.model.network, "backbone"):
        raise ValueError(f"--sparsity: a {dense.kind} network has no backbone.")
    cases, task, mesh = calibration_cases(dense, calibration), dense.task, dense.mesh
    rows = calibration_batches(dense, texts_of(dense, cases))
    model = plain(dense.model)
    known = loss_batches(task, dense.config, mesh, cases) if cases and not task.refresh_every else []
    settled = settled_dense(dense.config, path, out)
    settled = replace(settled, optimizer=replace(settled.optimizer, keep_zeros=True))
    with partial_folder(path, out) as partial:
        losses: dict[Method, float] = {}
        for method in (how.method, *(name for name in METHODS if known and name != how.method)):
            with heartbeat(f"choosing zeros by {method}"):
                network = sparsified(model, mesh, rows, replace(how, method=method))
            graphdef, state = nnx.split(network)
            params = place(nnx.to_pure_dict(state), model.shardings)
            if known:
                losses[method] = loss_on(task, mesh, graphdef, params, known)
            if method == how.method:
                declare(partial, dense)
                save_checkpoint(partial, dense, settled, params)
        before = loss_on(task, mesh, model.graphdef, model.params, known) if known else None
        written = Run(partial, RunData(settled), partial / "backbone", task, mesh, trained=True)
        found = Sparsified(before, losses, quality(dense, written))
        measured = found.quality
        report = {
            "version": version("instructrec_jax"),
            "source": str(path),
            "settings": asdict(how),
            "dense_loss": before,
            "losses": losses,
            "quality": None if measured is None else measured.results.evaluation,
            "loss": None if measured is None else measured.loss,
        }
        check_limit(measured, limit)
        finish(partial, out, settled, report)
    return found


def shown_sparse(found: Sparsified) -> str:
    """The losses of all methods, and the quality of the chosen one."""
    lines = [] if found.quality is None else [f"{found.quality.results}\n"]
    if found.dense is not None:
        lines += ["loss on the calibration examples, before any training:", f"  {'dense':12}{found.dense:.4f}"]
        lines += [f"  {method:12}{loss:.4f}" for method, loss in found.losses.items()]
    lines.append("zeros are stored and computed like other weights: the network is neither smaller nor faster")
    return "\n".join(lines)
