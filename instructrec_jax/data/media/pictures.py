"""Pictures → pixels for a network of images, as the folder's preprocessor_config.json says.

The numbers are those of transformers' image processors that compute with Pillow (`ViTImageProcessorPil` and the like):
Pillow's resizing has antialiasing.
"""

import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instructrec_jax.backbones.json_fields import Fields
from instructrec_jax.data.media.media_reader import processor_fields
from instructrec_jax.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

Sides = tuple[int, int]  # height, width
LARGEST = 1 << 26  # pixels of a picture, before and after it is resized: a file of a few bytes may claim any size


@dataclass(frozen=True)
class Preprocessing:
    """What is done with a picture, in this order; a step that is None (or False) is left out.

    Attributes:
        to_rgb: any mode becomes RGB, on a white ground where the picture is transparent.
        resize: the new height and width, or the length of the shorter side.
        resample: Pillow's filter, 0 to 5.
        crop: height and width of what is cut out of the middle; a smaller picture gets a black border.
        factor: of the values 0 to 255.
        mean, std: by channel (or one for all): (value - mean) / std.
    """

    to_rgb: bool
    resize: Sides | int | None
    resample: int
    crop: Sides | None
    factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...]


@dataclass(frozen=True)
class _Processor:
    """What transformers assumes of a kind of processor where the file is silent."""

    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: dict[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    crop: bool = False
    to_rgb: bool = True
    square: bool = False  # a size that is one number is of both sides


BILINEAR, BICUBIC, LAST_FILTER = 2, 3, 5
HALF = (0.5, 0.5, 0.5)
CLIP = _Processor(
    BICUBIC,
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
    size={"shortest_edge": 224},
    crop=True,
)
PROCESSORS = {
    "BitImageProcessor": CLIP,  # DINOv2's
    "CLIPImageProcessor": CLIP,
    "Gemma3ImageProcessor": _Processor(BILINEAR, HALF, HALF, square=True),
    "SiglipImageProcessor": _Processor(BICUBIC, HALF, HALF),
    "ViTImageProcessor": _Processor(BILINEAR, HALF, HALF, to_rgb=False, square=True),
}
READ = {
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("default_to_square", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
}
# Fields that change no number: the class, how arrays are handed over, and V, which config.json says.
SILENT = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "image_seq_length"),
}


def read_preprocessing(folder: Path) -> Preprocessing:
    """The settings of a folder's preprocessor_config.json, or of `image_processor` in its processor_config.json.

    Raises ValueError for a missing file, and for a processor or setting that is not implemented.
    """
    fields = processor_fields(folder, "image_processor", "pictures become pixels")
    processor = _processor(fields)
    for name, value in fields.values.items():
        if name not in READ | SILENT and value not in (None, False):
            fields.refuse(name, "absent or false, because it is not implemented")
    resample = fields.integer("resample", 0, LAST_FILTER)
    factor = fields.number("rescale_factor", 0.0)
    resizes, normalizes = fields.flag("do_resize", True), fields.flag("do_normalize", True)
    if resizes and resample is None and "resample" in fields.values:
        fields.refuse("resample", "a whole number from 0 to 5, because do_resize is true")
    std = _channels(fields, "image_std", processor.std) if normalizes else (1.0,)
    if min(std) <= 0.0:
        fields.refuse("image_std", "numbers above 0")
    return Preprocessing(
        to_rgb=fields.flag("do_convert_rgb", processor.to_rgb),
        resize=_resize(fields, processor) if resizes else None,
        resample=processor.resample if resample is None else resample,
        crop=_crop(fields) if fields.flag("do_center_crop", processor.crop) else None,
        factor=(1 / 255 if factor is None else factor) if fields.flag("do_rescale", True) else None,
        mean=_channels(fields, "image_mean", processor.mean) if normalizes else None,
        std=std,
    )


def _processor(fields: Fields) -> _Processor:
    """The defaults of the file's processor, whose name has changed over the years."""
    name = fields.text("image_processor_type") or fields.text("feature_extractor_type")
    base = (name or "").removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if base not in PROCESSORS:
        place = "image_processor_type" if fields.values.get("image_processor_type") else "feature_extractor_type"
        fields.refuse(place if name else "image_processor_type", f"one of {', '.join(PROCESSORS)}")
    return PROCESSORS[base]


def _channels(fields: Fields, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = fields.values.get(name, list(default))
    given = value if isinstance(value, list) else [value]
    numbers = tuple(float(one) for one in given if isinstance(one, int | float) and not isinstance(one, bool))
    if len(numbers) != len(given) or len(numbers) not in (1, 3):
        fields.refuse(name, "a number, or 1 or 3 of them")
    return numbers


def _resize(fields: Fields, processor: _Processor) -> Sides | int:
    sides = _sides(fields.values.get("size", processor.size))
    if set(sides) == {"height", "width"}:
        return sides["height"], sides["width"]
    if set(sides) == {"shortest_edge"}:
        return sides["shortest_edge"]
    if set(sides) == {""}:
        return (sides[""], sides[""]) if fields.flag("default_to_square", processor.square) else sides[""]
    fields.refuse("size", "a number, height and width, or shortest_edge alone, in pixels: no other is implemented")


def _crop(fields: Fields) -> Sides:
    sides = _sides(fields.values.get("crop_size", 224))
    if set(sides) == {"height", "width"}:
        return sides["height"], sides["width"]
    if set(sides) == {""}:
        return sides[""], sides[""]
    fields.refuse("crop_size", "a number, or height and width, in pixels: no other is implemented")


def _sides(value: object) -> dict[str, int]:
    """The sides by name, "" for a number without one; nothing unless they are whole numbers above 0."""
    named = value if isinstance(value, dict) else {"": value}
    sides = {str(name): side for name, side in named.items() if type(side) is int and side > 0}
    return sides if len(sides) == len(named) else {}


def open_picture(file: Path) -> "Image":
    """The picture of a file, see `decoded`. Raises ValueError, also for a file that is not there."""
    try:
        return decoded(file.read_bytes(), str(file))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error}).") from error


def decoded(data: bytes, name: str) -> "Image":
    """The picture of a file's bytes, upright as its EXIF orientation says; of an animation the first frame.

    Raises ValueError for bytes that Pillow cannot read, that are truncated, or that make more than `LARGEST` pixels.
    """
    require("PIL", f"the picture {name}")
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as opened:
            _check_size(opened.width, opened.height, f"{name} has")  # before anything is decoded
            opened.load()
            return ImageOps.exif_transpose(opened)
    # Pillow's decoders raise many kinds for damaged files
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, struct.error, zlib.error) as error:
        if str(error).startswith(f"{name} has"):
            raise
        raise ValueError(f"{name} cannot be read as a picture ({type(error).__name__}: {error}).") from error
    except (Image.DecompressionBombError, MemoryError, OverflowError) as error:
        raise ValueError(f"{name} cannot be read as a picture ({type(error).__name__}: {error}).") from error


def size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels that a file's first bytes claim; nothing is decoded. None: it is no picture."""
    require("PIL", "a picture")
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as opened:
            return opened.width, opened.height
    except Exception:  # whatever the bytes are: `decoded` says what is wrong with a picture
        return None


def _check_size(width: int, height: int, what: str) -> None:
    if width * height > LARGEST:
        raise ValueError(f"{what} {width:,} × {height:,} pixels, more than {LARGEST:,}: make it smaller.")


def pixels_of(pictures: Sequence["Image"], how: Preprocessing) -> np.ndarray:
    """float32 [rows, height, width, channels] of Pillow's pictures.

    Raises ValueError for pictures whose sizes differ in the end, and for modes that have no such channels.
    """
    arrays = [_pixels(picture, how) for picture in pictures]
    sizes = {array.shape for array in arrays}
    if len(sizes) != 1:
        raise ValueError(
            f"after resizing, the pictures have {len(sizes)} sizes ({sorted(sizes)[:3]}), but one batch has one: set a "
            "height and width in preprocessor_config.json, or do_center_crop."
        )
    return np.stack(arrays)


# Pillow's modes of 8 bits (or 1) per channel; others would be cut to 8 bits.
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def _pixels(picture: "Image", how: Preprocessing) -> np.ndarray:
    channels = 3 if how.mean is None else max(len(how.mean), len(how.std))
    if how.to_rgb:
        picture = on_white(picture)
    elif picture.mode != "RGB" and (picture.mode != "L" or channels != 1):
        raise ValueError(
            f"a picture has the mode {picture.mode}, but without do_convert_rgb in preprocessor_config.json it must be "
            f"{'RGB' if channels == 3 else 'L or RGB'}: convert it first (picture.convert('RGB'))."
        )
    if how.resize is not None:
        height, width = _new_sides(how.resize, picture.height, picture.width)
        _check_size(width, height, f"resized, a picture of {picture.width:,} × {picture.height:,} pixels has")
        picture = picture.resize((width, height), resample=how.resample)
    array = np.array(picture)
    array = array[..., None] if array.ndim == 2 else array
    if how.crop is not None:
        array = center_crop(array, how.crop)
    pixels = array.astype(np.float32)
    if how.factor is not None:
        pixels = (array.astype(np.float64) * how.factor).astype(np.float32)
    if how.mean is None:
        return pixels
    return (pixels - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)


def on_white(picture: "Image") -> "Image":
    """The picture in RGB, on a white ground where it is transparent. Raises ValueError for 16 bits per channel."""
    from PIL import Image

    if picture.mode not in MODES:
        raise ValueError(f"a picture has the mode {picture.mode}, which has no 8 bits per channel: convert it first.")
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def _new_sides(resize: Sides | int, height: int, width: int) -> Sides:
    if not isinstance(resize, int):
        return resize
    longer = int(resize * max(height, width) / min(height, width))
    return (longer, resize) if width <= height else (resize, longer)


def center_crop(array: np.ndarray, sides: Sides) -> np.ndarray:
    """The middle [*sides, channels] of [height, width, channels]; zeros around what is smaller."""
    for axis, new in enumerate(sides):
        old = array.shape[axis]
        start = (old - new) // 2
        if start < 0:  # transformers rounds the border in front of a smaller picture up, and then cuts
            ahead = math.ceil((new - old) / 2)
            border = [(0, 0)] * array.ndim
            border[axis] = (ahead, new - old - ahead)
            array = np.pad(array, border)
            start = start + ahead
        array = np.take(array, range(max(start, 0), min(start + new, array.shape[axis])), axis=axis)
    return array
