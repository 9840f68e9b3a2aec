"""Examples for networks that read images or sounds in place of words."""

from collections.abc import Iterator, Sequence

import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media_reader import MediaReader
from instructrec_jax.data.prompts import render
from instructrec_jax.data.text_images import TextImages
from instructrec_jax.tasks.base import TaskContext


def read_images(
    examples: Sequence[Example], names: Sequence[str], context: TaskContext, read: MediaReader
) -> Iterator[Text]:
    """The pictures or sounds of each example as a text. Each is decoded once, so that an unusable one is known before
    training.

    Args:
      names: of the examples in errors.

    Raises:
      ValueError: an example without a picture, with words, with more tokens than `max_length`, or with a picture that
        cannot be read.
    """
    noun = read.kind.noun
    for example, name in zip(examples, names, strict=True):
        count = len(example.media)
        if not count:
            field = "audio" if noun == "sound" else "image"
            raise ValueError(f"{name}: it has no {noun} (fields.{field}), but the network reads {noun}s alone.")
        if render(example):
            raise ValueError(
                f"{name}: it has the words {render(example)[:60]!r}, but the network reads {noun}s alone: set "
                "fields.instruction, fields.input, fields.messages and fields.system to null."
            )
        if (tokens := count * read.vectors) > context.max_length:
            each = "" if read.vectors == 1 else f" of {read.vectors:,} tokens each"
            raise ValueError(
                f"{name}: it has {count} {noun}s{each}, but data.max_length is {context.max_length}: raise it."
            )
        for one in example.media:
            try:
                read(one)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        yield Text(np.zeros(tokens, np.int32), images=TextImages.alone(example.media, read))
