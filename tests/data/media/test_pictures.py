"""Pixels against transformers' own processors on Pillow, and settings and pictures that are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from instructrec_jax.data.media.pictures import center_crop, open_picture, pixels_of, read_preprocessing

SMALL = {"height": 20, "width": 26}


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Noise and a gradient, so that every filter gives other numbers."""
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    noise[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(noise).convert(mode) if mode != "RGBA" else Image.fromarray(noise)


def write(folder: Path, **settings: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViT", {"size": SMALL}),
        ("ViT", {"size": 19, "resample": 3, "rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1]}),
        ("ViT", {"size": SMALL, "do_rescale": False, "do_normalize": False, "resample": 0}),
        ("ViT", {"do_resize": False, "do_normalize": False}),
        ("CLIP", {"size": {"shortest_edge": 22}, "crop_size": {"height": 17, "width": 15}}),
        ("CLIP", {"size": 21, "crop_size": 30, "resample": 1}),
        ("CLIP", {"do_resize": False, "crop_size": {"height": 45, "width": 24}, "image_std": 0.25}),
        ("CLIP", {}),
        ("Bit", {"size": {"shortest_edge": 25}, "crop_size": 22, "image_mean": [0.485, 0.456, 0.406]}),
        ("Siglip", {"size": SMALL, "resample": 4}),
        ("Siglip", {"do_resize": False, "do_rescale": False}),
    ],
)
@pytest.mark.parametrize("sides", [(37, 53), (52, 31), (16, 16)])
def test_pixels_are_those_of_transformers(name: str, settings: Any, sides: tuple[int, int], tmp_path: Path) -> None:
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    processor.save_pretrained(tmp_path)
    how = read_preprocessing(tmp_path)
    one = picture(*sides)
    expected = processor(one, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels_of([one], how), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("CLIP", {"size": 21, "crop_size": 15}),
        ("CLIP", {"size": 21, "default_to_square": True, "do_center_crop": False}),
        ("ViT", {"size": 19, "do_center_crop": True, "crop_size": 10}),
        ("ViT", {"size": 19, "default_to_square": False}),
        ("Siglip", {"size": 19, "do_convert_rgb": None}),
        ("Gemma3", {"size": {"height": 19, "width": 19}, "image_seq_length": 4, "pan_and_scan_min_crop_size": None}),
    ],
)
def test_old_files_with_one_number_for_a_size(name: str, settings: Any, tmp_path: Path) -> None:
    write(tmp_path, image_processor_type=f"{name}ImageProcessor", **settings)
    processor = getattr(transformers, f"{name}ImageProcessorPil").from_pretrained(tmp_path)
    one = picture(37, 53)
    expected = processor(one, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels_of([one], read_preprocessing(tmp_path)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    processor = transformers.SiglipImageProcessorPil(size=SMALL)
    processor.save_pretrained(tmp_path)
    one = picture(30, 23, mode)
    expected = processor(one, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels_of([one], read_preprocessing(tmp_path)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ViTFeatureExtractor", "ViTImageProcessorFast"])
def test_names_of_other_years(name: str, tmp_path: Path) -> None:
    field = "feature_extractor_type" if "Feature" in name else "image_processor_type"
    how = read_preprocessing(write(tmp_path, **{field: name}, do_pad=None, processor_class="X"))
    assert (how.resize, how.resample, how.crop, how.to_rgb) == ((224, 224), 2, None, False)


def test_settings_inside_of_a_processor(tmp_path: Path) -> None:
    inner = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 9}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert read_preprocessing(tmp_path).resize == 9


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "image_processor_type.*Qwen2VL"),
        ({"image_processor_type": None}, "image_processor_type is missing"),
        ({"do_pad": True}, "do_pad"),
        ({"a_setting_of_next_year": 3}, "a_setting_of_next_year"),
        ({"size": {"shortest_edge": 20, "longest_edge": 30}}, "size"),
        ({"size": {"max_height": 20, "max_width": 30}}, "size"),
        ({"size": 0}, "size"),
        ({"size": {"height": True, "width": 3}}, "size"),
        ({"crop_size": {"shortest_edge": 3}, "do_center_crop": True}, "crop_size"),
        ({"resample": 6}, "resample"),
        ({"resample": "bicubic"}, "resample"),
        ({"resample": None}, "resample"),
        ({"size": None}, "size"),
        ({"image_mean": None}, "image_mean"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_mean": "half"}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"do_resize": "yes"}, "do_resize"),
    ],
)
def test_what_is_not_implemented_is_named(settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"preprocessor_config.json.*{named}"):
        read_preprocessing(write(tmp_path, **{"image_processor_type": "ViTImageProcessor"} | settings))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        read_preprocessing(tmp_path)


def test_pictures_that_do_not_fit(tmp_path: Path) -> None:
    how = read_preprocessing(write(tmp_path, image_processor_type="ViTImageProcessor", do_resize=False))
    with pytest.raises(ValueError, match="mode RGBA.*do_convert_rgb"):
        pixels_of([picture(9, 9, "RGBA")], how)
    with pytest.raises(ValueError, match="2 sizes"):
        pixels_of([picture(9, 9), picture(9, 10)], how)
    how = read_preprocessing(write(tmp_path, image_processor_type="CLIPImageProcessor"))
    with pytest.raises(ValueError, match="mode F"):
        pixels_of([picture(9, 9, "F")], how)


def test_one_channel(tmp_path: Path) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5], "image_std": [0.5], "size": SMALL}
    assert pixels_of([picture(9, 9, "L")], read_preprocessing(write(tmp_path, **settings))).shape == (1, 20, 26, 1)


def test_files(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(30, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (30, 20)
    whole = (tmp_path / "turned.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.jpg", "text.png", "absent.png"):
        with pytest.raises(ValueError, match=name):
            open_picture(tmp_path / name)


def test_center_crop_of_a_smaller_picture() -> None:
    cropped = center_crop(np.ones((3, 8, 1)), (6, 4))
    assert cropped.shape == (6, 4, 1) and cropped[..., 0].sum() == 12 and cropped[2:5].all()
