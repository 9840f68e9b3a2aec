"""The sentence-transformers files of a HuggingFace folder: modules.json and a folder for each module.

The layout is that of sentence-transformers 2.0 and later: modules.json lists Transformer, Pooling, Dense (with a
projection) and Normalize, applied in this order.
"""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from instructrec_jax.backbones.folder import POOLING_MODES, Projection
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.files import write_json

MODULES = "sentence_transformers.models"
WEIGHT = "linear.weight"  # of a Dense module


def write_sentence_modules(
    folder: Path,
    *,
    hidden_size: int,
    pooling: str,
    projection: np.ndarray | None,
    max_length: int,
    lower_case: bool,
) -> None:
    """Declares pooling, projection and normalization of the network in `folder`, replacing older declarations.

    Keeps the folder's config_sentence_transformers.json (with its prompts).

    Args:
        hidden_size: width of the network's hidden states.
        pooling: one of the values of `POOLING_MODES`.
        projection: float [hidden_size, vector], by which pooled vectors are multiplied, or None.
        max_length: maximum tokens of a text.
        lower_case: lower-case texts before tokenizing.

    Raises ValueError for a projection that is not finite.
    """
    for old in [path for path in folder.glob("[0-9]*_*") if path.is_dir()]:
        shutil.rmtree(old)
    for file in folder.glob("sentence_*_config.json"):
        file.unlink()
    names = ["Transformer", "Pooling", *(["Dense"] if projection is not None else []), "Normalize"]
    paths = ["", *(f"{number}_{name}" for number, name in enumerate(names) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{MODULES}.{name}"}
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    switches = {key: mode == pooling for key, mode in POOLING_MODES.items()}
    write_json(folder / paths[1] / "config.json", {"word_embedding_dimension": hidden_size} | switches)
    if projection is not None:
        if not np.isfinite(projection).all():
            raise ValueError("the projection of the retrieval head contains NaN or infinity and is not written.")
        dense = {
            "in_features": projection.shape[0],
            "out_features": projection.shape[1],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        write_json(folder / paths[2] / "config.json", dense)
        weights = {WEIGHT: np.ascontiguousarray(projection.T.astype(np.float32))}
        save_file(weights, folder / paths[2] / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": lower_case})
    write_json(folder / "modules.json", modules)


def read_projection(projection: Projection) -> np.ndarray:
    """The weights of a Dense module, float32 [inputs, outputs].

    Raises ValueError for missing weights, another shape or dtype than declared, NaN or infinity.
    """
    with TensorFiles(projection.folder) as files:
        if list(files.names) != [WEIGHT]:
            raise ValueError(f"{projection.folder} should hold the tensor {WEIGHT} only, but has {list(files.names)}.")
        weight = files.read(WEIGHT).astype(np.float32)
    if weight.shape != (projection.outputs, projection.inputs):
        raise ValueError(
            f"{projection.folder}: {WEIGHT} has shape {weight.shape}, but its config.json declares "
            f"{(projection.outputs, projection.inputs)}."
        )
    if not np.isfinite(weight).all():
        raise ValueError(f"{projection.folder}: {WEIGHT} contains NaN or infinity.")
    return weight.T
