"""Examples for networks that read images or sounds in place of words, or images between them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.data.own_template import Pieces
from instructrec_jax.data.prompts import Tokens, render, tokenize_pieces
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.texts import cut


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
        decode_once(example, name, read)
        yield Text(np.zeros(tokens, np.int32), images=TextImages.alone(example.media, read))


def decode_once(example: Example, name: str, read: MediaReader) -> None:
    """Raises ValueError, with the example's name, for a picture or sound that cannot be read."""
    for one in example.media:
        try:
            read(one)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


# ---------------------------------------------------------------- images between words


def marked(example: Example, context: TaskContext) -> Example:
    """The example with the marks of its pictures, see `ImageTokens.marked`."""
    how = context.image_tokens
    return example if how is None else how.marked(example, len(example.images))


def tokenize_pictured(
    examples: Sequence[Example], names: Sequence[str], pieces: Sequence[Pieces], context: TaskContext
) -> list[Tokens]:
    """The tokens of rendered examples, with V for each picture.

    Raises ValueError where the tokens stand for another number of pictures than the example has.
    """
    how = context.image_tokens
    if how is None:
        return tokenize_pieces(pieces, context.tokenizer)
    found = []
    written = tokenize_pieces([how.pieces(each) for each in pieces], context.tokenizer)
    for example, name, tokens in zip(examples, names, written, strict=True):
        try:
            found.append(how.expanded(tokens, len(example.images)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def cut_pictured(tokens: Tokens, name: str, context: TaskContext) -> list[int]:
    """The tokens to keep of a text that is too long. Raises ValueError where it would lose a part of a picture."""
    kept = cut([1] * tokens.opening + [0] * (len(tokens.ids) - tokens.opening), name, context)
    if context.image_tokens is not None:
        context.image_tokens.check_whole(tokens.ids, tokens.ids[kept], name)
    return kept


def with_pictures(text: Text, example: Example, context: TaskContext) -> Text:
    """The text of `tokenize_pictured`, or its beginning, with the example's pictures.

    Raises ValueError where it ends before all of them, which the beginning does that ends before the last token of a
    question.
    """
    how, read = context.image_tokens, context.pixels
    if how is None or read is None or not example.images:
        return text
    places = how.places(text.tokens)
    if places.max(initial=-1) + 1 != len(example.images) * how.vectors:
        raise ValueError(f"example {example.id!r} ends its question with a picture: put words behind it.")
    return replace(text, images=TextImages(example.images, places, read))


def are_words(tokens: np.ndarray, context: TaskContext) -> np.ndarray:
    """bool [length]: not a part of a picture."""
    how = context.image_tokens
    return np.ones(len(tokens), bool) if how is None else tokens != how.token_id
