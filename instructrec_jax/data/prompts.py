"""How an example becomes the text that a network reads.

Encoders read `render(example)`. A language model reads a conversation as a template writes it: `written` gives the text
in pieces, and says which of them the assistant speaks; `tokenise_pieces` makes tokens of it, and says the same of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instructrec_jax.data.example import Example, Message, Output
from instructrec_jax.data.own_template import AS_IT_IS, OwnTemplate, Pieces, Rendering, check_fast
from instructrec_jax.data.templates import TEMPLATES, Template, TemplateName

# ---------------------------------------------------------------- examples as conversations


def question(example: Example) -> Example:
    """The example without its answer.

    The answer is `output`; where there is none, it is the last turn of a conversation that the assistant ends. A
    conversation beside an output belongs to the question, except for a last turn that says the output again.
    """
    turns = example.messages
    if turns and turns[-1].role == "assistant" and turns[-1].content == answer(example):
        turns = turns[:-1]
    return replace(example, output=None, messages=turns)


def answer(example: Example) -> str | None:
    """The answer as text: the output, or else the last turn of a conversation that the assistant ends."""
    if example.output is not None:
        return as_text(example.output)
    last = example.messages[-1] if example.messages else None
    return last.content if last and last.role == "assistant" else None


def as_text(output: Output) -> str:
    """A number as Python writes it (3.5, 4); several labels or items with ", " between them."""
    return ", ".join(output) if isinstance(output, tuple) else str(output)


def render(example: Example) -> str:
    """Instruction, then input, then the turns of a conversation, one a line; nothing of the answer (see `question`)."""
    example = question(example)
    turns = [f"{message.role}: {message.content}" for message in example.messages]
    system = f"system: {example.system}" if example.system else ""
    return "\n".join(part for part in (system, example.instruction, example.input, *turns) if part)


def conversation(example: Example, joint: str = "\n") -> list[Message]:
    """The turns of an example, the answer last where it is known.

    The instruction, and after `joint` the input, are the user's turn; the output is the assistant's (see `as_text`).
    Messages stay as they are. Beside messages, instruction and input are the system turn, below the system turn that
    the messages may have and a blank line.

    The example's system prompt is the system turn, or its beginning.

    Raises:
      ValueError: an output beside messages that end with another answer, or two system prompts.
    """
    asked, said = question(example), answer(example)
    turns = list(asked.messages)
    if said is not None and turns and turns[-1].role == "assistant":
        raise ValueError(
            "the conversation ends with the assistant's turn, and beside it there is another output: "
            "keep one of them as the answer (fields.messages, fields.output)."
        )
    system = [] if asked.system is None else [asked.system]
    if turns and turns[0].role == "system":
        if system:
            raise ValueError(
                "there is a system prompt beside messages with a system turn: set fields.system to null, or remove one."
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


def find_template(name: TemplateName, tokenizer: Any, kind: str) -> Template | None:
    """The template of a setting; None stands for the tokenizer's own chat template.

    Args:
      name: `auto` is the tokenizer's own chat template where it has one, else alpaca for decoders and plain for
        encoder–decoders.
      kind: of the network, see `backbones.family.Family`.

    Raises:
      ValueError: the tokenizer has no chat template, or lacks the template's special tokens.
    """
    if name == "auto":
        name = "tokenizer" if tokenizer.chat_template else "alpaca" if kind == "decoder" else "plain"
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise ValueError(f"task.template is tokenizer, but it has no chat template. Choose {', '.join(TEMPLATES)}.")
        return None
    if name not in TEMPLATES:
        raise ValueError(f"task.template {name!r} is unknown. Choose auto, tokenizer, {', '.join(TEMPLATES)}.")
    missing = [token for token in TEMPLATES[name].special if token not in tokenizer.get_vocab()]
    if missing:
        raise ValueError(
            f"the template {name} needs {', '.join(missing)}, which the tokenizer has not as tokens of their own. "
            "Choose alpaca or plain."
        )
    return TEMPLATES[name]


def written(
    example: Example,
    template: Template | None,
    tokenizer: Any,
    *,
    eos: str | None,
    rendering: Rendering = AS_IT_IS,
    notes: Counter[str] | None = None,
) -> Pieces:
    """The conversation of an example with an answer, as a template writes it.

    The assistant's pieces hold the words of a turn and what ends it: the template's end-of-turn token or EOS. The last
    of them is the end of the text.

    Args:
      template: None: the tokenizer's own chat template.
      eos: what ends an answer where the template has nothing of its own; None: there is no such token.
      rendering: what the tokenizer's own chat template is told beside the conversation.
      notes: counts what is not as people may expect it, by what it is.

    Raises:
      ValueError: no answer, or none to learn; or the template cannot write the conversation, or leaves out some of it.
    """
    turns = conversation(example, template.joint if template else "\n")
    if not turns or turns[-1].role != "assistant":
        ends = " (the conversation does not end with the assistant's turn)" if example.messages else ""
        raise ValueError(f"there is no answer to learn{ends}: name it in fields.output, or remove the row.")
    if not turns[-1].content.strip() and not turns[-1].extra:
        raise ValueError("the answer is empty: fill it in, or remove the row.")
    if not any(turn.learn for turn in turns if turn.role == "assistant"):
        raise ValueError("no turn of the assistant is to be learnt (weight 0, train false): remove the row.")
    if template is None:
        own = OwnTemplate(tokenizer, rendering, example.tools)
        pieces = own.pieces(turns, eos, Counter() if notes is None else notes)
    else:
        pieces = _by_name(example, turns, template, eos)
    if not any(learn for _, learn in pieces):
        raise ValueError(
            "the chat template rewrites every turn of weight 1, so there is nothing to learn: remove the row."
        )
    return pieces


def _by_name(example: Example, turns: Sequence[Message], template: Template, eos: str | None) -> Pieces:
    """The conversation as a named template writes it, which knows nothing but roles and contents."""
    extra = [f"{name} of messages" for turn in turns for name in turn.extra] + ["tools"] * bool(example.tools)
    if extra:
        key = extra[0].split(" of ")
        raise ValueError(
            f"this template does not write {extra[0]}: set task.template to tokenizer where its chat template does, "
            f"or, to leave it out, fields.ignore to [{'.'.join(reversed(key))}]."
        )
    end = eos if template.end is None else template.end
    if end is None:
        raise ValueError("the tokenizer has no eos_token, so nothing could end an answer. Set one in its files.")
    preamble = template.preamble_with_input if example.input and not example.messages else template.preamble
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
            raise ValueError(f"this template knows no {turn.role} turns: choose chatml, llama-3 or tokenizer.")
        pieces.append((affixes[0] + turn.content + affixes[1], False))
    return [piece for piece in pieces if piece[0]]


def prompt(
    example: Example,
    template: Template | None,
    tokenizer: Any,
    kind: str = "decoder",
    rendering: Rendering = AS_IT_IS,
) -> str:
    """What a decoder continues with an answer; an encoder–decoder's source.

    The tokenizer's own chat template invites the answer in its own way, as transformers' apply_chat_template does with
    add_generation_prompt. Where it has no way, and with a named template, it is what stands before the answer in
    training.
    """
    some = replace(question(example), output="x")
    if template is None:
        own = OwnTemplate(tokenizer, rendering, example.tools)
        turns = conversation(some)[:-1]
        asked = own.asked(turns)
        if own.invites(turns, asked):
            return asked
    eos = (tokenizer.eos_token or "") if kind == "decoder" else ""
    pieces = written(some, template, tokenizer, eos=eos, rendering=rendering)
    text = "".join(piece for piece, _ in pieces[:-1])
    if template is None and text.startswith(asked) and text.rstrip() == asked.rstrip():
        return asked  # the space before the answer is the beginning of its first token
    if kind == "encoder_decoder" and template is not None and not template.source_ends_with_prompt:
        return text.removesuffix(template.assistant)
    return text


# ---------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Tokens:
    """A tokenised text.

    Attributes:
      ids: int32 [length].
      said: bool [length], the assistant's.
      opening: how many tokens at the beginning are BOS.
      torn: how many of the assistant's pieces begin inside a token that is not the assistant's.
    """

    ids: np.ndarray
    said: np.ndarray
    opening: int
    torn: int


def opening_tokens(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before each text: BOS, or nothing."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    return list(probe["input_ids"][: probe["special_tokens_mask"].index(0)])


def opening_text(tokenizer: Any) -> str:
    """The same as text; "" for nothing, or for tokens that no text gives."""
    opening = opening_tokens(tokenizer)
    text = "".join(tokenizer.convert_ids_to_tokens(opening))
    return text if tokenizer(text, add_special_tokens=False)["input_ids"] == opening else ""


def with_opening(pieces: Pieces, spelled: str) -> Pieces:
    """The pieces behind what the tokenizer puts before each text, if the template did not write it."""
    begins = "".join(piece for piece, _ in pieces).startswith(spelled)
    return list(pieces) if begins else [(spelled, False), *pieces]


def tokenise_pieces(texts: Sequence[Pieces], tokenizer: Any, *, raw: bool = False) -> list[Tokens]:
    """Tokenises each text as a whole.

    A token belongs to the piece where its first visible character lies; one of white space alone, or without width, to
    the piece where it begins. So " yes" counts as the assistant's also where the space is the template's. The tokens
    that the tokenizer puts before a text (BOS) are added where the template wrote none; none are put behind it. They
    are written as text where that gives them: just so an exported chat template begins (see `opening_text`). Raw texts
    get them as `tokenizer(text)` puts them there.
    """
    check_fast(tokenizer)
    opening, spelled = opening_tokens(tokenizer), "" if raw else opening_text(tokenizer)
    result = []
    for first in range(0, len(texts), 1000):  # offsets are Python objects: not those of a whole data set at once
        block = [with_opening(pieces, spelled) for pieces in texts[first : first + 1000]]
        whole = ["".join(piece for piece, _ in pieces) for pieces in block]
        encoded = tokenizer(
            whole, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
        )
        for pieces, text, ids, offsets in zip(
            block, whole, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            said, torn = _said(pieces, text, np.array(offsets, np.int64).reshape(-1, 2))
            written_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
            if ids[: len(opening)] == opening:
                result.append(Tokens(np.array(ids, np.int32), said, len(opening) or int(written_bos), torn))
            else:
                said = np.concatenate([np.zeros(len(opening), bool), said])
                result.append(Tokens(np.array(opening + ids, np.int32), said, len(opening), torn))
    return result


def _said(pieces: Pieces, text: str, offsets: np.ndarray) -> tuple[np.ndarray, int]:
    """bool [tokens]: those of the assistant's pieces; and `Tokens.torn`. offsets int [tokens, 2]: begin and end."""
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
