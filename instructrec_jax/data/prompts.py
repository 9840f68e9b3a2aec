"""Renders examples as prompts.

Encoders read `render(example)`. Language models read a conversation rendered by a template: `written` gives the text in
pieces, each marked as trained on or not; `tokenize_pieces` tokenizes them and marks the tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Encoding

from instructrec_jax.data.example import Example, Message, Output
from instructrec_jax.data.own_template import AS_IT_IS, Pieces, Rendering, check_fast, own_template
from instructrec_jax.data.templates import TEMPLATES, Template, TemplateName
from instructrec_jax.hf_types import PreTrainedTokenizerBase

# ---------------------------------------------------------------- examples as conversations


def question(example: Example) -> Example:
    """The example without its answer.

    The answer is `output` or, without an output, a final assistant turn. With an output, the conversation belongs to
    the question, except for a final assistant turn that repeats the output.
    """
    turns = example.messages
    if turns and turns[-1].role == "assistant" and turns[-1].content == answer(example):
        turns = turns[:-1]
    return replace(example, output=None, messages=turns)


def answer(example: Example) -> str | None:
    """The answer as text: the output or, without an output, a final assistant turn."""
    if example.output is not None:
        return as_text(example.output)
    last = example.messages[-1] if example.messages else None
    return last.content if last and last.role == "assistant" else None


def references(example: Example) -> list[str]:
    """All acceptable answers, at least one."""
    if isinstance(example.output, tuple):
        return list(example.output)
    said = answer(example)
    return [] if said is None else [said]


def as_text(output: Output) -> str:
    """The output as text: a number as Python writes it (3.5, 4), several labels or items joined by ", "."""
    return ", ".join(output) if isinstance(output, tuple) else str(output)


def all_text(example: Example) -> str:
    """Every text of a conversation, one per line: what somebody wrote, without roles."""
    said = () if example.output is None else (as_text(example.output),)
    parts = (example.system, example.instruction, example.input, *(turn.content for turn in example.messages), *said)
    return "\n".join(part for part in parts if part)


def render(example: Example) -> str:
    """System prompt, instruction, input and the turns of a conversation, one per line, without the answer."""
    example = question(example)
    turns = [f"{message.role}: {message.content}" for message in example.messages]
    system = f"system: {example.system}" if example.system else ""
    return "\n".join(part for part in (system, example.instruction, example.input, *turns) if part)


def shown_input(example: Example) -> str:
    """What an example asks, for reports: its text, or the names of its pictures or sounds."""
    return render(example) or ", ".join(each.name for each in example.media)


def conversation(example: Example, joint: str = "\n") -> list[Message]:
    """The turns of an example, with the answer last if it is known.

    Without messages, the user turn is the instruction, `joint` and the input, and the assistant turn is the output
    (see `as_text`). Messages are unchanged. With messages, instruction and input are appended to the system turn after
    a blank line.

    The example's system prompt starts the system turn.

    Raises:
      ValueError: an output with messages that end with another answer, or two system prompts.
    """
    asked, said = question(example), answer(example)
    turns = list(asked.messages)
    if said is not None and turns and turns[-1].role == "assistant":
        raise ValueError(
            "the conversation ends with an assistant turn that differs from the output: "
            "keep one of them as the answer (fields.messages, fields.output)."
        )
    system = [] if asked.system is None else [asked.system]
    if turns and turns[0].role == "system":
        if system:
            raise ValueError(
                "the record has a system prompt and a system message: set fields.system to null, or remove one of them."
            )
        system = [turns.pop(0).content]
    if turns:
        request = "\n".join(part for part in (asked.instruction, asked.input) if part)
        system += [request] if request else []
    else:
        turns = [Message("user", joint.join(part for part in (asked.instruction, asked.input) if part))]
        turns = turns if turns[0].content else []
    turns = [Message("system", "\n\n".join(system)), *turns] if system else turns
    if said is None:
        return turns
    own = example.messages[-1:] if len(asked.messages) < len(example.messages) else (Message("assistant", said),)
    return [*turns, *own]


# ---------------------------------------------------------------- templates


def find_template(name: TemplateName, tokenizer: PreTrainedTokenizerBase, kind: str) -> Template | None:
    """The template of the setting `task.template`; None: the tokenizer's own chat template.

    Args:
      name: `auto` is the tokenizer's own chat template if it has one, else alpaca for decoders and plain for
        encoder–decoders.
      kind: of the network, see `backbones.family.Family`.

    Raises:
      ValueError: the tokenizer has no chat template, or lacks the template's special tokens.
    """
    if name == "auto":
        name = "tokenizer" if tokenizer.chat_template else "alpaca" if kind == "decoder" else "plain"
    if name == "tokenizer":
        if not tokenizer.chat_template:
            message = "task.template is tokenizer, but the tokenizer has no chat template"
            raise ValueError(f"{message}. Choose {', '.join(TEMPLATES)}.")
        return None
    if name not in TEMPLATES:
        raise ValueError(f"task.template {name!r} is unknown. Choose auto, tokenizer, {', '.join(TEMPLATES)}.")
    missing = [token for token in TEMPLATES[name].special if token not in tokenizer.get_vocab()]
    if missing:
        raise ValueError(
            f"the template {name} needs the tokens {', '.join(missing)}, which the tokenizer lacks. "
            "Choose alpaca or plain."
        )
    return TEMPLATES[name]


def written(
    example: Example,
    template: Template | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eos: str | None,
    rendering: Rendering = AS_IT_IS,
    notes: Counter[str] | None = None,
) -> Pieces:
    """The conversation of an example with an answer, rendered by a template.

    An assistant piece is the content of a turn and its end: the template's end-of-turn token or EOS. The text ends with
    an assistant piece.

    Args:
      template: None: the tokenizer's own chat template.
      eos: ends an answer where the template has no end-of-turn token; None: there is no such token.
      rendering: variables of the tokenizer's own chat template.
      notes: updated counts of unexpected cases, by description.

    Raises:
      ValueError: no answer, or no answer to train on; or the template cannot render the conversation in full.
    """
    turns = conversation(example, template.joint if template else "\n")
    if not turns or turns[-1].role != "assistant":
        ends = " (the conversation does not end with an assistant turn)" if example.messages else ""
        raise ValueError(f"the example has no answer{ends}: set fields.output, or remove the row.")
    if not turns[-1].content.strip() and not turns[-1].extra:
        raise ValueError("the answer is empty: fill it in, or remove the row.")
    if not any(turn.learn for turn in turns if turn.role == "assistant"):
        raise ValueError("every assistant turn has weight 0 or train false, so none is trained on: remove the row.")
    if template is None:
        own = own_template(tokenizer, rendering, example.tools)
        pieces = own.pieces(turns, eos, Counter() if notes is None else notes)
    else:
        pieces = _by_name(example, turns, template, eos)
    if not any(learn for _, learn in pieces):
        raise ValueError("the chat template rewrites every turn of weight 1, so nothing is trained on: remove the row.")
    return pieces


def _by_name(example: Example, turns: Sequence[Message], template: Template, eos: str | None) -> Pieces:
    """The conversation rendered by a named template, which uses roles and contents only."""
    extra = [f"{name} of messages" for turn in turns for name in turn.extra] + ["tools"] * bool(example.tools)
    if extra:
        key = extra[0].split(" of ")
        raise ValueError(
            f"this template does not write {extra[0]}: set task.template to tokenizer if its chat template does, "
            f"or set fields.ignore to [{'.'.join(reversed(key))}] to leave it out."
        )
    end = eos if template.end is None else template.end
    if end is None:
        raise ValueError("the tokenizer has no eos_token to end an answer. Set one in the tokenizer's files.")
    preamble = (
        template.preamble_with_input
        if example.instruction and example.input and not example.messages
        else template.preamble
    )
    pieces = [(template.start + (preamble if turns[0].role != "system" else ""), False)]
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            last = number == len(turns) - 1
            pieces += [
                (template.assistant, False),
                (turn.content + end, turn.learn),
                ("" if last else template.between, False),
            ]
            continue
        affixes = {"system": template.system, "user": template.user, "tool": template.tool}[turn.role]
        if affixes is None:
            raise ValueError(f"this template has no {turn.role} turns: choose chatml, llama-3 or tokenizer.")
        pieces.append((affixes[0] + turn.content + affixes[1], False))
    return [piece for piece in pieces if piece[0]]


def prompt(
    example: Example,
    template: Template | None,
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "decoder",
    rendering: Rendering = AS_IT_IS,
) -> str:
    """The prompt for an answer: the prefix for a decoder, the source for an encoder–decoder.

    With the tokenizer's own chat template, it is transformers' `apply_chat_template(add_generation_prompt=True)`.
    Without a generation prompt, and with a named template, it is the text before the answer in training.
    """
    some = replace(question(example), output="x")
    if template is None:
        own = own_template(tokenizer, rendering, example.tools)
        turns = conversation(some)[:-1]
        asked = own.asked(turns)
        if own.invites(turns, asked):
            return asked
    eos = (tokenizer.eos_token or "") if kind == "decoder" else ""
    pieces = written(some, template, tokenizer, eos=eos, rendering=rendering)
    text = "".join(piece for piece, _ in pieces[:-1])
    if template is None and text.startswith(asked) and text.rstrip() == asked.rstrip():
        return asked  # the space before the answer belongs to the answer's first token
    if kind == "encoder_decoder" and template is not None and not template.source_ends_with_prompt:
        return text.removesuffix(template.assistant)
    return text


# ---------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Tokens:
    """A tokenized text.

    Attributes:
      ids: int32 [length].
      said: bool [length], the assistant's tokens that are trained on.
      opening: number of BOS tokens at the start.
      torn: number of assistant pieces that start inside a token of another piece.
    """

    ids: np.ndarray
    said: np.ndarray
    opening: int
    torn: int


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts before each text: BOS, or none."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    return list(probe["input_ids"][: probe["special_tokens_mask"].index(0)])


def opening_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """`opening_tokens` as text; "" if there are none or no text gives them."""
    opening = opening_tokens(tokenizer)
    text = "".join(tokenizer.convert_ids_to_tokens(opening))
    return text if tokenizer(text, add_special_tokens=False)["input_ids"] == opening else ""


def with_opening(pieces: Pieces, spelled: str) -> Pieces:
    """The pieces, after the opening text `spelled` unless the template wrote it."""
    begins = "".join(piece for piece, _ in pieces).startswith(spelled)
    return list(pieces) if begins else [(spelled, False), *pieces]


def tokenize_pieces(texts: Sequence[Pieces], tokenizer: PreTrainedTokenizerBase, *, raw: bool = False) -> list[Tokens]:
    """Tokenizes each text as a whole.

    A token belongs to the piece of its first visible character; a token of white space, or without width, to the piece
    where it starts. So " yes" is the assistant's even if the template wrote the space. BOS is added at the start where
    the template wrote none, as text if that gives the same tokens (as in an exported chat template, see
    `opening_text`); with `raw`, as `tokenizer(text)` adds it. Nothing is added at the end.
    """
    check_fast(tokenizer)
    opening, spelled = opening_tokens(tokenizer), "" if raw else opening_text(tokenizer)
    result = []
    for first in range(0, len(texts), 256):  # in blocks, because encodings take some 100 bytes a token
        block = [with_opening(pieces, spelled) for pieces in texts[first : first + 256]]
        whole = ["".join(piece for piece, _ in pieces) for pieces in block]
        # As tokenizer(whole) does, without its lists of masks; `opening_tokens` has switched truncation off.
        encodings = tokenizer.backend_tokenizer.encode_batch(whole, add_special_tokens=False)
        for pieces, text, encoding in zip(block, whole, encodings, strict=True):
            said = _said_between_tokens(pieces, encoding)
            torn, ids = 0, encoding.ids
            if said is None:
                said, torn = _said(pieces, text, np.array(encoding.offsets, np.int64).reshape(-1, 2))
            written_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
            if ids[: len(opening)] == opening:
                result.append(Tokens(np.array(ids, np.int32), said, len(opening) or int(written_bos), torn))
            else:
                said = np.concatenate([np.zeros(len(opening), bool), said])
                result.append(Tokens(np.array(opening + ids, np.int32), said, len(opening), torn))
    return result


def _said_between_tokens(pieces: Pieces, encoding: Encoding) -> np.ndarray | None:
    """Mask of the assistant's tokens, bool [tokens], if every piece but the first starts with a token; else None.

    The usual case of `_said`, without the offsets of all tokens as Python objects.
    """
    starts, place = [0], 0
    for piece, _ in pieces[:-1]:
        place += len(piece)
        token = encoding.char_to_token(place) or 0
        this, before = (encoding.token_to_chars(each) if token else None for each in (token, token - 1))
        if not this or not before or this[0] != place or before[0] == before[1] or before[1] > place:
            return None  # the last token before is without width, or reaches into the piece
        starts.append(token)
    said = np.zeros(len(encoding), bool)
    for (_, learn), start, stop in zip(pieces, starts, [*starts[1:], len(said)], strict=True):
        said[start:stop] = learn
    return said


def _said(pieces: Pieces, text: str, offsets: np.ndarray) -> tuple[np.ndarray, int]:
    """Mask of the assistant's tokens, bool [tokens], and `Tokens.torn`. offsets: int [tokens, 2], start and end."""
    ends = np.cumsum([len(piece) for piece, _ in pieces])
    begins = offsets[:, 0].copy()
    across = np.searchsorted(ends, begins, "right") != np.searchsorted(ends, offsets[:, 1], "left")
    for index in np.flatnonzero(across & (offsets[:, 1] > begins)):
        piece = text[begins[index] : offsets[index, 1]]
        begins[index] += len(piece) - len(piece.lstrip()) if piece.strip() else 0
    belongs = np.minimum(np.searchsorted(ends, begins, "right"), len(pieces) - 1)
    assistant = np.array([said for _, said in pieces], bool)
    into_next = (offsets[:, 1] > ends[belongs]) & ~assistant[belongs] & np.append(assistant[1:], False)[belongs]
    return assistant[belongs], len(np.unique(belongs[into_next]))
