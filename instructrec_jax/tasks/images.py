"""Examples for networks of images alone: each picture is one token."""

from collections.abc import Iterator, Sequence

import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.pixels import PixelReader
from instructrec_jax.data.prompts import render
from instructrec_jax.data.text_images import TextImages
from instructrec_jax.tasks.base import TaskContext


def read_images(
    examples: Sequence[Example], names: Sequence[str], context: TaskContext, read: PixelReader
) -> Iterator[Text]:
    """The pictures of each example as a text. Each is decoded once, so that an unusable one is known before training.

    Args:
      names: of the examples in errors.

    Raises:
      ValueError: an example without a picture, with words, with more pictures than `max_length`, or with a picture that
        cannot be read.
    """
    for example, name in zip(examples, names, strict=True):
        count = len(example.images)
        if not count:
            raise ValueError(f"{name}: it has no picture (fields.image), but the network reads images alone.")
        if render(example):
            raise ValueError(
                f"{name}: it has the words {render(example)[:60]!r}, but the network reads images alone: set "
                "fields.instruction, fields.input, fields.messages and fields.system to null."
            )
        if count > context.max_length:
            raise ValueError(f"{name}: it has {count} pictures, but data.max_length is {context.max_length}: raise it.")
        for picture in example.images:
            try:
                read(picture)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        yield Text(np.zeros(count, np.int32), images=TextImages.alone(example.images, read))
