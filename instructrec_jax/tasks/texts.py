"""Tokenization for tasks: single texts and pairs, truncation, and the word of each token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instructrec_jax.backbones.folder import read_pooling
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import render
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.objective import Reading


def with_default_prompt(context: TaskContext) -> TaskContext:
    """The context with the default prompt of the backbone's folder, for tasks that map a text to one vector.

    Raises ValueError where data.truncate left would cut the prompt.
    """
    prompt = "" if context.folder is None else read_pooling(context.folder).prompt
    if prompt and context.truncate == "left":
        raise ValueError(
            f"data.truncate left would cut the prompt {prompt!r} that the checkpoint puts before each text "
            "(default_prompt_name in config_sentence_transformers.json). Choose right, drop or error."
        )
    return replace(context, prompt=prompt)


def tokenize(texts: Sequence[str], names: Sequence[str], context: TaskContext) -> list[Text | None]:
    """Tokenizes texts, with special tokens. A text dropped by `truncate: drop` becomes None.

    Args:
      names: the name of each text in errors.

    Raises:
      ValueError: a text without tokens, or longer than `max_length` with `truncate: error`.
    """
    return [_fitting(tokens, name, context) for tokens, name in zip(_tokens(texts, context), names, strict=True)]


def rendered(context: TaskContext, example: Example) -> list[Reading]:
    """What `tokenize` reads of a rendered example."""
    whole = context.prompt + render(example)
    return [Reading.whole(whole.lower() if context.lower_case else whole, len(context.prompt))]


def tokenize_examples(
    examples: Sequence[Example], names: Sequence[str], context: TaskContext, *, pairs: bool
) -> list[Text | None]:
    """Tokenizes rendered examples (see `data.prompts.render`); arguments, result and errors as in `tokenize`.

    Args:
      pairs: encode instruction and input of an example with both (and no messages) as the tokenizer's own text pair,
        with separator and token types: [CLS] instruction [SEP] input [SEP] in BERT. Of a pair that is too long, the
        longer text is truncated first.
    """
    together = [pairs and bool(e.instruction and e.input) and not e.messages for e in examples]
    single = iter(_tokens([render(e) for e, pair in zip(examples, together, strict=True) if not pair], context))
    both = [e for e, pair in zip(examples, together, strict=True) if pair]
    double = iter(_tokens([e.instruction for e in both], context, [e.input or "" for e in both]))
    found = [next(double) if pair else next(single) for pair in together]
    return [_fitting(tokens, name, context) for tokens, name in zip(found, names, strict=True)]


def knows_pairs(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a special token between the two texts of a pair."""
    if not tokenizer.is_fast:
        return False
    sequence = tokenizer("a", "a").encodings[0].sequence_ids
    return None in sequence[sequence.index(0) : sequence.index(1)]


@dataclass(frozen=True)
class _Tokens:
    """A tokenized text. `owners`: the text (0 or 1) of each token, None for a special token."""

    ids: list[int]
    types: list[int] | None
    owners: list[int | None]


def _tokens(texts: Sequence[str], context: TaskContext, seconds: Sequence[str] | None = None) -> list[_Tokens]:
    if not texts:  # the tokenizer fails on an empty list
        return []
    inputs = [[context.prompt + text for text in texts], *([] if seconds is None else [list(seconds)])]
    if context.lower_case:
        inputs = [[text.lower() for text in each] for each in inputs]
    encoded = context.tokenizer(
        *inputs, add_special_tokens=True, truncation=False, return_special_tokens_mask=True, verbose=False
    )
    types = encoded.get("token_type_ids") or [None] * len(texts)
    owners: list[list[int | None]]
    if seconds is None:
        owners = [[None if special else 0 for special in row] for row in encoded["special_tokens_mask"]]
    else:
        owners = [encoded.sequence_ids(number) for number in range(len(texts))]
    return [_Tokens(*each) for each in zip(encoded["input_ids"], types, owners, strict=True)]


def _fitting(tokens: _Tokens, name: str, context: TaskContext) -> Text | None:
    """The text, truncated if too long; None: dropped."""
    kept = list(range(len(tokens.ids)))
    if len(kept) > context.max_length:
        if too_long(len(kept), name, context) == "drop":
            return None
        if 1 in tokens.owners:
            kept = _cut_pair(tokens.owners, name, context)
        else:
            kept = cut([int(owner is None) for owner in tokens.owners], name, context)
    if not kept:
        raise ValueError(f"{name} has no tokens.")
    types = None if tokens.types is None else np.array([tokens.types[i] for i in kept], np.int32)
    ids = np.array([tokens.ids[i] for i in kept], np.int32)
    if context.pad_to is not None:
        padding = np.full(context.pad_to - len(ids), context.tokenizer.pad_token_id, np.int32)
        return Text(np.concatenate([ids, padding]))
    return Text(ids, types)


def _cut_pair(owners: Sequence[int | None], name: str, context: TaskContext) -> list[int]:
    """The tokens to keep of a pair that is too long: special tokens, and the beginning or the end of both texts.

    The longer text is truncated to the length of the other one, then both are truncated alike.
    """
    first, second = ([i for i, owner in enumerate(owners) if owner == number] for number in (0, 1))
    room = context.max_length - (len(owners) - len(first) - len(second))
    if room < 2:
        raise ValueError(
            f"data.max_length is {context.max_length}, too short for {name} with its special tokens: raise it."
        )
    keep_first = min(len(first), max(room - len(second), room - room // 2))
    kept = {i for i, owner in enumerate(owners) if owner is None}
    for places, count in ((first, keep_first), (second, room - keep_first)):
        kept |= set(places[len(places) - count :] if context.truncate == "left" else places[:count])
    return sorted(kept)


def owners(tokens: Any, parts: Sequence[str], joint: str = " ", sequence: int = 0) -> np.ndarray:
    """int32 [tokens]: the part of the text that each token belongs to; −1 for special tokens and other texts.

    The text is tokenized as a whole, as in pretraining: tokenizers whose tokens include the preceding space (RoBERTa,
    GPT-2) would tokenize single parts differently.

    Args:
      tokens: output of a fast tokenizer, with return_offsets_mapping, for joint.join(parts) as text `sequence`.
    """
    ends = np.cumsum([len(part) + len(joint) for part in parts]) - len(joint)
    offsets = np.array(tokens["offset_mapping"], np.int64).reshape(-1, 2)
    inside = np.array([number == sequence for number in tokens.sequence_ids()]) & (offsets[:, 1] > offsets[:, 0])
    # by a token's last character: its first may be the preceding space
    return np.where(inside, np.searchsorted(ends, offsets[:, 1]), -1).astype(np.int32)


def too_long(length: int, name: str, context: TaskContext) -> str:
    """Counts a text of more than `max_length` tokens and returns `truncate`: left, right or drop.

    Raises ValueError where it is error.
    """
    if context.truncate == "error":
        raise ValueError(
            f"{name} has {length} tokens, but data.max_length is {context.max_length}. Raise it, or set "
            "data.truncate to left, right or drop."
        )
    label = "dropped" if context.truncate == "drop" else "cut"
    context.count(f"texts {label}", 1)
    return context.truncate


def cut(special: list[int], name: str, context: TaskContext) -> list[int]:
    """The tokens to keep of a text that is too long: special tokens, and the text's beginning or end.

    Args:
      special: for each token, 1 if the tokenizer added it, 0 if it is the text's own.
    """
    own = [i for i, is_special in enumerate(special) if not is_special]
    room = context.max_length - (len(special) - len(own))
    if room < 1:
        raise ValueError(
            f"data.max_length is {context.max_length}, too short for {name} with its special tokens: raise it."
        )
    left_out = set(own[:-room] if context.truncate == "left" else own[room:])
    return [i for i in range(len(special)) if i not in left_out]
