"""Take a tuned model out of its run directory: `python -m instructrec_jax.export RUN --format orbax|hf --out FOLDER`.

orbax   FOLDER/params, a plain orbax checkpoint of the parameters alone, and FOLDER/metadata.json. Opens without
        this package: `orbax.checkpoint.StandardCheckpointer().restore(FOLDER.absolute() / "params")`.
hf      a HuggingFace folder (config, tokenizer, safetensors) that `transformers` opens. Heads that HuggingFace
        knows go with it; a retrieval head is written beside it as retrieval_head.safetensors.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file

from instructrec_jax import assemble
from instructrec_jax.adapters.heads import MaskedLMHead, SequenceHead, TokenHead
from instructrec_jax.assemble import Assembly
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.config import main_guard, to_dict
from instructrec_jax.files import write_json

HEAD_KINDS = {SequenceHead: "sequence", TokenHead: "token", MaskedLMHead: "mlm"}


def export(run: Path, out: Path, *, format: str, step: int | None = None, dtype: str | None = None) -> None:
    """Writes a run's best checkpoint (or the one of `step`) into the new folder `out`.

    Args:
      format: "orbax" or "hf".
      dtype: of the written parameters: "float32", "float16" or "bfloat16"; None keeps float32 (orbax) or the dtype
        of the checkpoint that was tuned (hf).

    Raises:
      ValueError: `out` exists, or `run` is not a run directory with a checkpoint.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out.")
    config, task, mesh = assemble.open_run(run)
    model = assemble.restored_model(config, task, run, mesh, step)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if format == "orbax":
            write_orbax(partial, model, to_dict(config), dtype)
        else:
            write_hf(partial, model, run, task, dtype)
        partial.rename(out)
    except SafetensorError as error:  # not an OSError, even where the disk is full
        raise OSError(f"{out} could not be written: {error}. Nothing is left of it; free some space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_orbax(folder: Path, model: Assembly, settings: dict[str, Any], dtype: str | None) -> None:
    # NumPy arrays: orbax would note the devices of jax arrays, and then ask for the same ones when it reads.
    params = jax.tree.map(lambda x: np.asarray(x if dtype is None else x.astype(dtype)), model.params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").absolute(), params)
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    shapes = {"/".join(str(part.key) for part in path): [str(x.dtype), *x.shape] for path, x in flat}
    backbone = model.source.config.to_dict()
    write_json(folder / "metadata.json", {"settings": settings, "backbone": backbone, "parameters": shapes})


def write_hf(folder: Path, model: Assembly, run: Path, task: Any, dtype: str | None) -> None:
    network: Any = nnx.merge(model.graphdef, model.params)
    kind = HEAD_KINDS.get(type(network.head))
    config = model.source.config
    if kind in ("sequence", "token"):
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
        config.problem_type = getattr(task, "problem_type", None)
    shutil.copytree(run / "backbone", folder, dirs_exist_ok=True)
    head = network.head if kind else None
    save_pretrained(folder, network.backbone, config, head=head, head_kind=kind, dtype=dtype)
    if kind is None:
        values = {
            ".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(network.head))
        }
        save_file(values, folder / "retrieval_head.safetensors")


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m instructrec_jax.export", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--format", choices=("orbax", "hf"), default="orbax", help="what to write")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist yet")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the best")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="dtype of the written parameters")
    options = parser.parse_args(args)
    export(options.run, options.out, format=options.format, step=options.step, dtype=options.dtype)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main_guard(main)
