"""The parts of check_parity.py that compare networks of images, and images beside words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from instructrec_jax.backbones.row_images import RowImages

Say = Callable[[str, float, float], None]  # what, our distance from float64, PyTorch's own


def compare_images(torch_model: Any, loaded: Any, head: Any, rng: np.random.Generator, say: Say) -> None:
    """Compares the outputs for images of three sizes, and for texts. `torch_model` is float64 afterwards."""
    pair = loaded.family.kind == "image_text"
    spec = loaded.module.spec.vision if pair else loaded.module.spec
    size, patch = spec.image_size, spec.patch_size
    sizes = {"own size": (size, size), "oblong": (2 * size + 1, size + patch), "small": (patch, 2 * patch)}
    every = []
    for what, (height, width) in sizes.items():
        batch = image_texts(loaded.module, rng) if pair else {}
        batch["pixels"] = rng.normal(size=(3, height, width, spec.channels)).astype(np.float32)
        every.append((f"{what} ({height} × {width})", batch))
    in_float32 = [torch_images(torch_model, loaded, batch) for _, batch in every]
    torch_model = torch_model.double()
    for (what, batch), single in zip(every, in_float32, strict=True):
        with softmax_of_float64():
            expected = torch_images(torch_model, loaded, batch)
        actual = {name: np.asarray(value) for name, value in _forward_images(loaded.module, head, batch).items()}
        for name, value in expected.items():
            real = batch["segment_ids"] != 0 if name == "hidden of texts" else np.ones(len(value), bool)
            say(f"{what}: {name}", largest((value - actual[name])[real]), largest((value - single[name])[real]))


def image_texts(module: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Ragged texts that end with CLIP's end; for SigLIP of the full length, as it was trained."""
    end, longest = module.spec.end_id, module.max_length
    lengths = np.array([longest] * 4 if end == -1 else [longest, max(1, longest // 2), 2, 1])
    end = module.vocab_size - 1 if end is None else end
    place = np.broadcast_to(np.arange(longest, dtype=np.int32), (4, longest))
    tokens = rng.integers(0, module.vocab_size - 1, (4, longest), dtype=np.int32)
    tokens = np.where(tokens == end, (end + 1) % (module.vocab_size - 1), tokens)
    tokens = np.where(place == lengths[:, None] - 1, end, tokens) if end >= 0 else tokens
    real = place < lengths[:, None]
    return {"tokens": np.where(real, tokens, 0), "segment_ids": real.astype(np.int32), "positions": place}


def torch_images(model: Any, loaded: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's outputs by name for pixels [rows, height, width, channels] and texts."""
    pixels = torch.tensor(batch["pixels"]).permute(0, 3, 1, 2).to(next(model.parameters()).dtype)
    # DINOv2 interpolates always
    options = {} if loaded.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        if "tokens" not in batch:
            out = getattr(model, model.base_model_prefix, model)(pixels, **options)
            pooled = None if loaded.report.initialized else out.pooler_output
            whole = model(pixels, **options)
            result = {"hidden": out.last_hidden_state, "pooled": pooled, "logits": getattr(whole, "logits", None)}
        else:
            ids = {
                "input_ids": torch.tensor(batch["tokens"]).long(),
                "attention_mask": torch.tensor(batch["segment_ids"]).long(),
            }
            out, texts = model.vision_model(pixels, **options), model.text_model(**ids)
            result = {"hidden": out.last_hidden_state, "pooled": out.pooler_output}
            result["hidden of texts"] = texts.last_hidden_state
            if out.pooler_output is not None:
                whole = model(pixel_values=pixels, **ids, **options)
                result |= {"texts": whole.text_embeds, "images": whole.image_embeds, "logits": whole.logits_per_text}
    return {name: value.numpy() for name, value in result.items() if value is not None}


@nnx.jit
def _forward_images(module: Any, head: Any, batch: Any) -> dict[str, jax.Array]:
    vision = getattr(module, "vision", module)
    result = {"hidden": vision(batch["pixels"])}
    if vision.spec.pooling != "none":
        result["pooled"] = vision.pool(result["hidden"])
    if head is not None:
        vectors = module.vectors(result["hidden"])[:, None]
        result["logits"] = head(module, vectors, np.ones(vectors.shape[:2], np.int32), 1)[:, 0]
    if "tokens" in batch:
        inputs = [batch[name] for name in ("tokens", "segment_ids", "positions")]
        result["hidden of texts"] = module.text(*inputs)
        texts = module.embed_texts(*inputs)
        if "pooled" in result:
            images = module.embed_images(batch["pixels"])
            result["logits"] = module.similarity(texts, images)
            result |= {
                name: vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
                for name, vectors in (("texts", texts), ("images", images))
            }
    return result


@contextmanager
def softmax_of_float64() -> Iterator[None]:
    """transformers computes softmax in float32, where float64's mask becomes -inf and padding rows NaN: patches it."""
    functional: Any = torch.nn.functional
    plain = functional.softmax

    def softmax(x: torch.Tensor, *arguments: Any, dtype: Any = None, **options: Any) -> Any:
        return plain(x, *arguments, dtype=None if x.dtype == torch.float64 else dtype, **options)

    functional.softmax = softmax
    try:
        yield
    finally:
        functional.softmax = plain


def largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())


# ---------------------------------------------------------------- images beside words


def with_images(loaded: Any, rng: np.random.Generator, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with random images: two side by side in its first row, none in the second, one in each other row."""
    module, tokens = loaded.module, batch["tokens"].copy()
    count, size, channels = module.image_vectors, module.image_size, module.reader.spec.vision.channels
    rows = len(tokens)
    places = np.full_like(tokens, -1)
    starts = [(row, 1 + k * (count + 1), k) for row in range(rows) for k in range({0: 2, 1: 0}.get(row, 1))]
    for row, start, k in starts:
        places[row, start : start + count] = k * count + np.arange(count)
    pixels = rng.normal(size=(rows, 2, size, size, channels)).astype(np.float32)
    for row in range(1, rows):
        pixels[row, places[row].max() // count + 1 :] = 0
    return batch | {"tokens": np.where(places < 0, tokens, module.image_token_id), "places": places, "pixels": pixels}


def image_lengths(module: Any) -> list[int]:
    """Lengths of rows with room for the images of `with_images`."""
    return [2 * module.image_vectors + 7, 5, module.image_vectors + 1, module.image_vectors + 4]


def row_images(batch: Any) -> dict[str, RowImages]:
    """The arguments of our networks about images."""
    return {"images": RowImages(batch["pixels"], batch["places"])} if "pixels" in batch else {}


def torch_arguments(model: Any, loaded: Any, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The arguments of PyTorch's networks about images and prompts."""
    arguments = {}
    if loaded.module.prompt_type:  # there 0 in a prompt, and 1 in an answer
        arguments["token_type_ids"] = torch.tensor(1 - batch["token_types"]).long()
    if "pixels" in batch:
        used = [pixels[: places.max() // loaded.module.image_vectors + 1] for pixels, places in _rows(batch)]
        pixels = torch.tensor(np.concatenate(used)).permute(0, 3, 1, 2)
        if len(pixels):
            arguments["pixel_values"] = pixels.to(next(model.parameters()).dtype)
        if loaded.config.model_type == "gemma3":
            arguments["token_type_ids"] = torch.tensor(batch["places"] >= 0).long()
    return arguments


def _rows(batch: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(batch["pixels"], batch["places"], strict=True))


def pack_images(loaded: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The images of all rows as those of one row; places still lie in [rows, length]."""
    rows, most = batch["pixels"].shape[:2]
    first = loaded.module.image_vectors * most * np.arange(rows)[:, None]
    places = np.where(batch["places"] < 0, -1, batch["places"] + first)
    return {"pixels": batch["pixels"].reshape(1, rows * most, *batch["pixels"].shape[2:]), "places": places}
