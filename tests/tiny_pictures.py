"""Small pictures, and image networks with what says how pictures become pixels."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

SIZES: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8
)
PROCESSORS = {
    "vit": dict(image_processor_type="ViTImageProcessor", do_convert_rgb=True),
    "dinov2": dict(image_processor_type="BitImageProcessor", crop_size=dict(height=16, width=16)),
    "clip": dict(image_processor_type="CLIPImageProcessor", crop_size=dict(height=16, width=16)),
    "siglip": dict(image_processor_type="SiglipImageProcessor"),
}
TEXT: dict[str, Any] = dict(
    vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)


def png(number: int, size: tuple[int, int] = (20, 18), mode: str = "RGB", format: str = "PNG", **how: Any) -> bytes:
    """The file of a random picture of (width, height)."""
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, format=format, **how)
    return file.getvalue()


def image_network(kind: str, folder: Path, head: bool = False, **changes: Any) -> Path:
    """A tiny random ViT, DINOv2, CLIP or SigLIP with dropout, as transformers writes it; `head`: with a classifier."""
    torch.manual_seed(0)
    dropout = dict(attention_dropout=0.1)
    if kind in ("vit", "dinov2"):
        dropout = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    name = {"vit": "ViT", "dinov2": "Dinov2", "clip": "CLIP", "siglip": "Siglip"}[kind]
    if kind in ("clip", "siglip"):
        text = TEXT | (dict(projection_size=32) if kind == "siglip" else {}) | changes.pop("text", {})
        settings = dict(text_config=text, vision_config=SIZES | dropout, **changes)
    else:
        settings = SIZES | dropout | (dict(mlp_ratio=2) if kind == "dinov2" else {}) | changes
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}{'ForImageClassification' if head else 'Model'}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    size = dict(shortest_edge=16) if "crop_size" in PROCESSORS[kind] else dict(height=16, width=16)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind] | dict(size=size)))
    return folder


def pair_network(kind: str, folder: Path, tokenizer: Any, positions: int = 127) -> Path:
    """An `image_network` that reads the texts of a tokenizer, whose texts end with [SEP]."""
    ids = dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.sep_token_id, pad_token_id=0, bos_token_id=2)
    image_network(kind, folder, text=dict(max_position_embeddings=positions, attention_dropout=0.1) | ids)
    tokenizer.save_pretrained(folder)
    return folder


CODES = [4, 4]  # levels of the numbers of a code: with the words' tokens, eight devices can split the vocabulary


def image_tokenizer(folder: Path, **changes: Any) -> Path:
    """A tiny random image tokenizer: pictures of 16 pixels as four codes."""
    from flax import nnx

    from instructrec_jax.backbones.folder import read_config
    from instructrec_jax.backbones.reading import build_backbone
    from instructrec_jax.backbones.writing import save_pretrained

    sizes = dict(image_size=16, patch_size=8, num_channels=3, hidden_size=16, num_hidden_layers=2, levels=CODES)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(model_type="fsq_tokenizer") | sizes | changes))
    config = read_config(folder, images=True)
    save_pretrained(folder, build_backbone(config, rngs=nnx.Rngs(0)), config)
    side = dict(height=config.image_size, width=config.image_size)
    processor = dict(image_processor_type="ViTImageProcessor", do_convert_rgb=True, size=side)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def drawing_network(folder: Path, words: Path) -> Path:
    """The language model of a folder, with tokens for the codes of an image tokenizer that lies inside."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    tokenizer.add_tokens([f"<code_{n}>" for n in range(int(np.prod(CODES)))])
    config = transformers.AutoConfig.from_pretrained(words)
    kind = getattr(transformers, config.architectures[0])
    torch.manual_seed(0)
    model = kind.from_pretrained(words)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_tokenizer(folder / "image_tokenizer")
    return folder


def tar(file: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as opened:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return file


def zipped(file: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in content.items():
            opened.writestr(name, data)
    return file
