"""The declarations of a HuggingFace folder: config, family, task head, pooling."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from instructrec_jax.backbones import (
    bart,
    bert,
    clip,
    dallebart,
    dinov2,
    distilbert,
    gemma,
    gemma3,
    gpt2,
    image_tokenizer,
    llama,
    llava,
    modernbert,
    mpnet,
    paligemma,
    roberta,
    siglip,
    t5,
    vit,
    vqgan,
    whisper,
)
from instructrec_jax.backbones.family import PAIR, WORDLESS, Family
from instructrec_jax.backbones.json_fields import Fields, read_fields, read_objects
from instructrec_jax.backbones.llama_cpp.reading import gguf_folder
from instructrec_jax.backbones.network_config import read_network_config
from instructrec_jax.backbones.tensor_names import TensorFiles, has_tensors
from instructrec_jax.hf_types import PretrainedConfig

FAMILIES: dict[str, Family] = {
    "bart": bart.FAMILY,
    "bert": bert.FAMILY,
    "clip": clip.FAMILY,
    "clip_text_model": clip.TEXT_FAMILY,
    "clip_vision_model": clip.VISION_FAMILY,
    "dallebart": dallebart.FAMILY,
    "dinov2": dinov2.FAMILY,
    "dinov2_with_registers": dinov2.REGISTERS_FAMILY,
    "distilbert": distilbert.FAMILY,
    "fsq_tokenizer": image_tokenizer.FAMILY,
    "gemma": gemma.GEMMA_FAMILY,
    "gemma2": gemma.GEMMA2_FAMILY,
    "gemma3": gemma3.FAMILY,
    "gemma3_text": gemma.GEMMA3_FAMILY,
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "llava": llava.FAMILY,
    "mistral": llama.MISTRAL_FAMILY,
    "modernbert": modernbert.FAMILY,
    "mpnet": mpnet.FAMILY,
    "mt5": t5.MT5_FAMILY,
    "paligemma": paligemma.FAMILY,
    "qwen2": llama.QWEN2_FAMILY,
    "qwen3": llama.QWEN3_FAMILY,
    "roberta": roberta.FAMILY,
    "siglip": siglip.FAMILY,
    "siglip_text_model": siglip.TEXT_FAMILY,
    "siglip_vision_model": siglip.VISION_FAMILY,
    "t5": t5.FAMILY,
    "vit": vit.FAMILY,
    "vqgan": vqgan.FAMILY,
    "whisper": whisper.FAMILY,
    "xlm-roberta": roberta.XLM_FAMILY,
}


NAFLEX = ("siglip2", "siglip2_vision_model", "siglip2_text_model")
STALE = ("quantization_config", "compression_config", "auto_map")  # see `read_config`


@dataclass(frozen=True)
class Projection:
    """A linear layer without bias after the pooling: sentence-transformers' Dense module.

    Attributes:
        folder: where its config.json is, and its weights (a run directory keeps the config.json only).
        inputs: width of the pooled vectors.
        outputs: width of the projected vectors.
    """

    folder: Path
    inputs: int
    outputs: int


@dataclass(frozen=True)
class PoolingSpec:
    """Pooling of a text into one vector, from sentence-transformers files or the family's default.

    Attributes:
        mode: "cls" | "mean" | "max" | "mean_sqrt_len" | "weightedmean" | "lasttoken".
        normalize: scale the vector to length 1.
        max_length: maximum tokens of a text (None: the network's limit).
        lower_case: lower-case texts before tokenizing.
        prompt: prefix of each text (sentence-transformers' default prompt).
        declared: False for the family's default.
        projection: what follows the pooling (None: nothing).
    """

    mode: str
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    declared: bool = False
    projection: Projection | None = None


def find_folder(path_or_hub_id: str | os.PathLike[str]) -> Path:
    """The local folder of a checkpoint; a hub id (`owner/name`) is downloaded into huggingface_hub's cache.

    Downloads only config, tokenizer and safetensors files. A file of llama.cpp is written as a folder into this
    package's cache (see `llama_cpp.reading`). Raises ValueError if none of them exists.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        return gguf_folder(folder)
    name = str(path_or_hub_id)
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or folder.exists():
        raise ValueError(
            f"{name} is not a folder: give a folder with config.json and model.safetensors, a .gguf file, or a hub id."
        )
    import huggingface_hub

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*/config.json", "README.md"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(
            f"{name!r} is not a local folder and could not be downloaded from the HuggingFace hub "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error


def read_config(
    path_or_hub_id: str | os.PathLike[str], *, images: bool = False, tower: bool = False
) -> PretrainedConfig:
    """The `transformers` config of a folder. Without `images`, it must be of a network of texts.

    With `tower`, that of a pair of an image network and a text network (CLIP) is its image network's, and Whisper's
    that of its encoder.

    Fields about the storage of the weights (quantization_config) and about remote code, which is never run (auto_map),
    are removed, because they would be wrong in exports with this config.

    Raises ValueError for a missing file, an unsupported model_type, a field of a wrong type or an impossible value.
    """
    folder = find_folder(path_or_hub_id)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: it is not a HuggingFace checkpoint folder.")
    fields = read_fields(file)
    family = find_family(fields.text("model_type"), str(folder))
    if family.kind in (*WORDLESS, PAIR) and not images:
        raise ValueError(
            f"{folder} holds a network of images (model_type {fields.text('model_type')!r}), but a network of texts is "
            f"needed here: {', '.join(name for name, one in FAMILIES.items() if not one.kind.startswith('image'))}. "
            "Tasks that read images train it (see docs/images.md); from Python, `load_backbone(folder, images=True)` "
            "reads it."
        )
    config = read_network_config(folder)
    if tower and family.tower is not None:
        config = family.tower(config)
    for name in STALE:
        if hasattr(config, name):
            delattr(config, name)
    if family.output_table is not None:  # transformers declares every T5 tied
        config.tie_word_embeddings = _is_tied(folder, family, fields.flag("tie_word_embeddings", True))
    return config


def _is_tied(folder: Path, family: Family, declared: bool) -> bool:
    """Whether a T5's output table equals the word embeddings in the files; without files, config.json's value."""
    if not has_tensors(folder):
        return declared
    table = next(rule.name for rule in family.mapping if rule.path == "word_embeddings.table")
    with TensorFiles(folder) as files:
        both = {family.output_table, table} <= set(files.names)
        return not both or files.equal(str(family.output_table), table)


def find_family(model_type: str | None, where: str = "the config") -> Family:
    """The family of a `model_type`. Raises ValueError for an unsupported one."""
    if model_type in NAFLEX:
        raise ValueError(
            f"model_type {model_type!r} of {where} is SigLIP 2 with pictures of any resolution (NaFlex), which is not "
            "implemented: use a checkpoint of a fixed resolution, whose model_type is 'siglip'."
        )
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} of {where} is not supported; supported: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def family_of(config: PretrainedConfig) -> Family:
    """The family of a config, with the tables of its network of texts. Raises ValueError for an unsupported one."""
    family = find_family(config.model_type)
    return family if family.variant is None else family.variant(config)


def declared_head(config: PretrainedConfig) -> str | None:
    """The kind of task head in the config's `architectures`: "sequence", "token", "span", "mlm", "lm" or None."""
    names = getattr(config, "architectures", None) or ()
    for kind, head in family_of(config).heads.items():
        suffixes = (head.suffix, "ForPreTraining") if kind == "mlm" else (head.suffix,)
        if any(name.endswith(suffixes) for name in names):
            return kind
    return None


def read_pooling(path_or_hub_id: str | os.PathLike[str]) -> PoolingSpec:
    """The pooling declared in a sentence-transformers folder's `modules.json`, else the family's default.

    Raises ValueError for a module or mode that is not implemented.
    """
    folder = find_folder(path_or_hub_id)
    modules = folder / "modules.json"
    if not modules.is_file():
        config = read_fields(folder / "config.json")
        return PoolingSpec(find_family(config.text("model_type"), str(folder)).pooling)
    mode, normalize, prompt = "mean", False, _default_prompt(folder)
    projection: Projection | None = None
    for module in read_objects(modules):
        kind = (module.text("type") or "").rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = read_fields(_module_folder(folder, module) / "config.json")
            mode = _pooling_mode(pooling)
            if prompt and not pooling.flag("include_prompt", True):
                raise ValueError(
                    f"{pooling.where}: include_prompt is false, which excludes the default prompt {prompt!r} from the "
                    f"pooling; this is not implemented. Set default_prompt_name to null in {folder / PROMPTS} and, if "
                    "you need the prompt, add it to your texts."
                )
        elif kind == "Dense" and projection is None and not normalize:
            projection = _read_projection(_module_folder(folder, module))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ValueError(
                f"{modules} has a {kind!r} module, which is not supported there (supported: Transformer, Pooling, at "
                "most one Dense, Normalize, in this order); ignoring it would change the vectors."
            )
    files = sorted(folder.glob("sentence_*_config.json"))
    text = read_fields(files[0]) if files else Fields("", {})
    return PoolingSpec(
        mode,
        normalize,
        text.integer("max_seq_length", 1),
        text.flag("do_lower_case"),
        prompt,
        declared=True,
        projection=projection,
    )


def _module_folder(folder: Path, module: Fields) -> Path:
    path = module.text("path")
    if path is None or Path(path).name != path:
        module.refuse("path", "the name of a folder beside modules.json")
    return folder / path


def _read_projection(folder: Path) -> Projection:
    """A Dense module's config.json. Raises ValueError for a bias or an activation, which are not implemented."""
    dense = read_fields(folder / "config.json")
    if dense.flag("bias", True):
        dense.refuse("bias", "false: projections with a bias are not implemented")
    if (dense.text("activation_function") or "Tanh").rpartition(".")[2] != "Identity":
        dense.refuse("activation_function", "torch.nn.modules.linear.Identity: no other one is implemented")
    inputs, outputs = dense.integer("in_features", 1), dense.integer("out_features", 1)
    if inputs is None or outputs is None:
        dense.refuse("out_features" if inputs else "in_features", "a whole number")
    return Projection(folder, inputs, outputs)


PROMPTS = "config_sentence_transformers.json"


def _default_prompt(folder: Path) -> str:
    """The default prompt of a sentence-transformers folder."""
    if not (folder / PROMPTS).is_file():
        return ""
    fields = read_fields(folder / PROMPTS)
    name = fields.text("default_prompt_name")
    if name is None:
        return ""
    prompts = fields.object("prompts")
    prompt = None if prompts is None else prompts.text(name)
    if prompt is None:
        fields.refuse("default_prompt_name", "null or one of the prompts")
    return prompt


POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _pooling_mode(config: Fields) -> str:
    named = config.values.get("pooling_mode")
    if isinstance(named, str):
        modes = [named]
    elif named is not None:
        modes = config.texts("pooling_mode") or []
    else:
        switches = [key for key in config.values if key.startswith("pooling_mode_")]
        modes = [POOLING_MODES.get(key, key) for key in switches if config.flag(key)]
    if len(modes) != 1 or modes[0] not in POOLING_MODES.values():
        raise ValueError(
            f"{config.where}: pooling {' + '.join(modes) or '(none)'} is not supported; choose exactly one of "
            f"{', '.join(POOLING_MODES.values())}."
        )
    return modes[0]


PROCESSOR = ("preprocessor_config.json", "processor_config.json")  # how pictures become pixels


def has_processor(folder: Path) -> bool:
    """Whether a folder says how pictures become pixels."""
    return any((folder / name).is_file() for name in PROCESSOR)


def keep_declared_files(folder: Path, target: Path) -> None:
    """Copies a folder's files about generation, pooling and pictures to `target`, replacing another checkpoint's."""
    patterns = ("generation_config.json", "modules.json", "sentence_*_config.json", PROMPTS, *PROCESSOR)
    for old in [file for pattern in (*patterns, "*_*/config.json") for file in target.glob(pattern)]:
        old.unlink()
    kept = [file for pattern in patterns for file in folder.glob(pattern)]
    if (folder / "modules.json").is_file():
        paths = [module.text("path") or "" for module in read_objects(folder / "modules.json")]
        configs = [folder / path / "config.json" for path in paths if path and Path(path).name == path]
        kept += [file for file in configs if file.is_file()]
    for file in kept:
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def weights_fingerprint(folder: Path) -> str:
    """64 hex digits that identify the weights: hash of sizes and samples (up to 1 MiB per file) of all safetensors."""
    digest = hashlib.sha256()
    for file in [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("[0-9]*_*/*.safetensors"))]:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        with file.open("rb") as opened:
            for start in sorted({size * part // 64 for part in range(64)}):
                opened.seek(start)
                digest.update(opened.read(1 << 14))
    return digest.hexdigest()
