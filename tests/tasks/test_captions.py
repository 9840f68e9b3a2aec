"""Texts as the text network of a pair reads them, and images beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_pictures import png

from instructrec_jax.data.batch import Text
from instructrec_jax.data.media.picture import picture
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.captions import Captions, beside_image, image_alone


def test_a_caption_ends_as_its_network_wants(pair_networks: dict[str, Path], tokenizer: Any) -> None:
    context = TaskContext(tokenizer, 128)
    own = tokenizer("a film")["input_ids"]
    for kind in ("clip", "siglip"):
        context.folder = pair_networks[f"{kind} pair"]
        (text,) = Captions.of(context).tokens(["a film"], ["x"])
        assert text is not None
        assert text.tokens.tolist() == own + [0] * (127 - len(own) if kind == "siglip" else 0)
    context.max_length = 64
    with pytest.raises(ValueError, match="data.max_length is 64.*set it to 128"):
        Captions.of(context)


def test_the_places_of_an_image(pair_networks: dict[str, Path]) -> None:
    read = PixelReader.of(pair_networks["clip pair"], 3, 5)
    image = TextImages.alone((picture(png(1)),), read)
    both = beside_image(Text(np.array([4, 5, 6], np.int32)), image)
    assert both.tokens.tolist() == [4, 5, 6, 0]
    assert both.images is not None and both.images.places.tolist() == [-1, -1, -1, 0]
    alone = image_alone(image)
    assert alone.tokens.tolist() == [0] and alone.images is not None and alone.images.places.tolist() == [0]
