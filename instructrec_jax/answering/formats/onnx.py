"""Encoders with their heads as ONNX files.

Why through torch: jax2onnx 0.17 does not write the programs of these networks for any number of rows and tokens (`rem`
of arrays of unknown size fails), while torch writes the same networks from an exported HuggingFace folder. `export`
compares the file with ours in onnxruntime before it is kept.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instructrec_jax.answering.formats.program import Program, folder_program
from instructrec_jax.backbones.folder import PoolingSpec, find_family, read_config, read_pooling
from instructrec_jax.extras import require

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4  # largest difference from our outputs, on ragged rows; relative where these are above 1


def write_onnx(folder: Path, out: Path) -> str:
    """Writes model.onnx of a HuggingFace folder, and returns how to run it.

    Raises ValueError for a network that is no encoder, and for a file whose outputs differ from ours by more than
    `TOLERANCE`.
    """
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(package, "--format onnx")
    import torch

    config = read_config(folder)
    if find_family(config.model_type).kind != "encoder":
        raise ValueError(
            f"--format onnx writes encoders, but {config.model_type} is none: use --format gguf or stablehlo."
        )
    program, spec = folder_program(folder), read_pooling(folder)
    if spec.projection is not None:
        raise ValueError("--format onnx: the projection of the vectors (a Dense module) is not written: use stablehlo.")
    network = _network(folder, config.architectures or [], program, spec)
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", min=2, max=program.longest)
    example = tuple(torch.ones((2, 8), dtype=torch.int64) for _ in program.inputs)
    torch.onnx.export(
        network,
        example,
        str(out / "model.onnx"),
        input_names=list(program.inputs),
        output_names=[program.output],
        dynamic_shapes=tuple({0: rows, 1: length} for _ in program.inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    _compare(out / "model.onnx", program, config.vocab_size)
    return (
        f"`onnxruntime.InferenceSession('model.onnx').run(None, inputs)` gives {program.output} (float32); the inputs, "
        f"by name, are {', '.join(program.inputs)}: int64 [rows, length], with at most {program.longest} tokens."
    )


def _network(folder: Path, architectures: list[str], program: Program, spec: PoolingSpec) -> "torch.nn.Module":
    import torch
    import transformers

    cls = getattr(transformers, architectures[0]) if architectures else transformers.AutoModel
    network = cls.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()

    class Output(torch.nn.Module):
        """The one array that `Program` gives."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, types: torch.Tensor | None = None
        ) -> torch.Tensor:
            more = {} if types is None else {"token_type_ids": types}
            found = self.network(input_ids=input_ids, attention_mask=attention_mask, **more)
            if "start_logits" in found:
                return torch.stack([found.start_logits, found.end_logits], dim=-1)
            if "logits" in found:
                return found.logits
            hidden = found.last_hidden_state
            return _pooled(hidden, attention_mask, spec) if program.output == "vectors" else hidden

    return Output()


def _pooled(hidden: "torch.Tensor", mask: "torch.Tensor", spec: PoolingSpec) -> "torch.Tensor":
    """One vector per row [rows, width]; see `adapters.heads.pool_segments`."""
    import torch

    weights = mask[..., None].to(hidden.dtype)
    if spec.mode == "cls":
        vectors = hidden[:, 0]
    elif spec.mode == "mean":
        vectors = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    else:
        raise ValueError(f"--format onnx: the pooling {spec.mode!r} is not written: use stablehlo.")
    return torch.nn.functional.normalize(vectors, dim=-1) if spec.normalize else vectors


def _compare(file: Path, program: Program, vocabulary: int) -> None:
    """Raises ValueError if the outputs of ragged rows differ from ours."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for rows, length in ((1, 2), (3, min(16, program.longest)), (2, min(33, program.longest))):
        rng = np.random.default_rng(length)
        mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(np.int64)
        tokens = np.where(mask > 0, rng.integers(0, vocabulary, (rows, length)), 0)
        given = dict(zip(program.inputs, (tokens, mask, np.zeros_like(mask)), strict=False))
        found = session.run(None, given)[0]
        ours = np.asarray(program.call(program.params, *(x.astype(np.int32) for x in given.values())))
        apart = np.abs(found - ours)
        worst = float((apart[mask > 0] if ours.shape[:2] == mask.shape and ours.ndim == 3 else apart).max())
        if not worst <= TOLERANCE * max(1.0, float(np.abs(ours).max())):
            raise ValueError(
                f"--format onnx: {worst:.2g} between the file's outputs and ours: please report this network."
            )
