"""What a HuggingFace folder declares: its config, its family, its task head, its pooling."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from instructrec_jax.backbones import bart, bert, distilbert, gemma, gpt2, llama, modernbert, mpnet, roberta, t5
from instructrec_jax.backbones.family import Family
from instructrec_jax.backbones.tensor_names import TensorFiles, has_tensors
from instructrec_jax.files import read_json

FAMILIES: dict[str, Family] = {
    "bart": bart.FAMILY,
    "bert": bert.FAMILY,
    "distilbert": distilbert.FAMILY,
    "gemma2": gemma.GEMMA2_FAMILY,
    "gemma3_text": gemma.GEMMA3_FAMILY,
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "mistral": llama.MISTRAL_FAMILY,
    "modernbert": modernbert.FAMILY,
    "mpnet": mpnet.FAMILY,
    "mt5": t5.MT5_FAMILY,
    "qwen2": llama.QWEN2_FAMILY,
    "qwen3": llama.QWEN3_FAMILY,
    "roberta": roberta.FAMILY,
    "t5": t5.FAMILY,
    "xlm-roberta": roberta.XLM_FAMILY,
}


@dataclass(frozen=True)
class PoolingSpec:
    """How a sentence becomes one vector: what sentence-transformers files declare, else by family.

    Attributes:
        mode: "cls" | "mean" | "max" | "mean_sqrt_len" | "weightedmean" | "lasttoken".
        normalize: scale the vector to length 1.
        max_length: tokens a text is cut to (None: the network's limit).
        lower_case: the text is lower-cased before the tokenizer sees it.
        declared: False when the folder says nothing and this is the family's default.
    """

    mode: str
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    declared: bool = False


def find_folder(path_or_hub_id: str | os.PathLike[str]) -> Path:
    """The local folder of a checkpoint; a hub id (`owner/name`) is fetched into huggingface_hub's cache.

    Only config, tokenizer and safetensors files are fetched. Raises ValueError when there is neither.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or folder.exists():
        raise ValueError(f"{name} is not a folder. Give a folder with config.json and model.safetensors, or a hub id.")
    import huggingface_hub

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*/config.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise ValueError(
            f"{name!r} is neither a local folder nor a checkpoint that could be fetched from the "
            f"HuggingFace hub ({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error


def read_config(path_or_hub_id: str | os.PathLike[str]) -> Any:
    """The `transformers` config of a folder; ValueError for a missing file or unsupported model_type."""
    folder = find_folder(path_or_hub_id)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json; it is not a HuggingFace checkpoint folder.")
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} should hold a JSON object, but holds {type(content).__name__}.")
    family = find_family(content.get("model_type"), str(folder))
    config = AutoConfig.from_pretrained(folder)
    if family.output_table is not None:  # transformers says "tied" of every T5
        config.tie_word_embeddings = _is_tied(folder, family, bool(content.get("tie_word_embeddings", True)))
    return config


def _is_tied(folder: Path, family: Family, declared: bool) -> bool:
    """Whether the files tie a T5's output table to the word embeddings; without files, whether config.json does."""
    if not has_tensors(folder):
        return declared
    table = next(rule.name for rule in family.mapping if rule.path == "word_embeddings.table")
    with TensorFiles(folder) as files:
        both = {family.output_table, table} <= set(files.names)
        return not both or files.equal(str(family.output_table), table)


def find_family(model_type: str | None, where: str = "the config") -> Family:
    """The family of a `model_type`. Raises ValueError that lists the supported ones."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} of {where} is not supported. Supported: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def declared_head(config: Any) -> str | None:
    """The kind of task head the checkpoint's `architectures` promises: "sequence", "token", "mlm", "lm" or None."""
    names = getattr(config, "architectures", None) or ()
    for kind, head in find_family(config.model_type).heads.items():
        suffixes = (head.suffix, "ForPreTraining") if kind == "mlm" else (head.suffix,)
        if any(name.endswith(suffixes) for name in names):
            return kind
    return None


def read_pooling(path_or_hub_id: str | os.PathLike[str]) -> PoolingSpec:
    """The pooling that a sentence-transformers folder declares in `modules.json`, else the family's.

    Raises ValueError for a module or mode that is not implemented.
    """
    folder = find_folder(path_or_hub_id)
    if not (folder / "modules.json").is_file():
        return PoolingSpec(find_family(read_json(folder / "config.json").get("model_type"), str(folder)).pooling)
    mode, normalize = "mean", False
    for module in read_json(folder / "modules.json"):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            mode = _pooling_mode(read_json(folder / module["path"] / "config.json"), folder)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ValueError(
                f"{folder / 'modules.json'} lists a {kind!r} module, which is not supported "
                "(supported: Transformer, Pooling, Normalize). Ignoring it would change the vectors."
            )
    files = sorted(folder.glob("sentence_*_config.json"))
    text = read_json(files[0]) if files else {}
    return PoolingSpec(
        mode, normalize, text.get("max_seq_length"), bool(text.get("do_lower_case", False)), declared=True
    )


POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _pooling_mode(config: Mapping[str, Any], folder: Path) -> str:
    named = config.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else list(named)
    else:
        modes = [POOLING_MODES.get(k, k) for k, on in config.items() if k.startswith("pooling_mode_") and on]
    if len(modes) != 1 or modes[0] not in POOLING_MODES.values():
        raise ValueError(
            f"{folder}: pooling {' + '.join(modes) or '(none)'} is not supported; supported is exactly one "
            f"of {', '.join(POOLING_MODES.values())}."
        )
    return modes[0]


def weights_fingerprint(folder: Path) -> str:
    """64 hex digits that change when the weights do: sizes and samples (1 MiB a file and more) of all safetensors."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            for start in sorted({size * part // 64 for part in range(64)}):
                opened.seek(start)
                digest.update(opened.read(1 << 14))
    return digest.hexdigest()
