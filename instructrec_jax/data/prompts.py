"""How an example becomes the text that a network reads.

Encoders read `render(example)`. A language model reads a conversation as a template writes it: `written` gives the text
in pieces, and says which of them the assistant speaks; `tokenise_pieces` makes tokens of it, and says the same of them.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from instructrec_jax.data.example import Example, Message, Output

# Named, because --help shows a setting's comment only where its type is a plain name.
TemplateName = Literal["auto", "tokenizer", "alpaca", "chatml", "llama-3", "plain"]
Pieces = list[tuple[str, bool]]  # texts that make up the whole one, and whether the assistant says (and learns) it


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
    return "\n".join(part for part in (example.instruction, example.input, *turns) if part)


def conversation(example: Example, joint: str = "\n") -> list[Message]:
    """The turns of an example, the answer last where it is known.

    The instruction, and after `joint` the input, are the user's turn; the output is the assistant's (see `as_text`).
    Messages stay as they are. Beside messages, instruction and input are the system turn, below the system turn that
    the messages may have and a blank line.

    Raises:
      ValueError: an output beside messages that end with another answer.
    """
    asked, said = question(example), answer(example)
    turns = list(asked.messages)
    if said is not None and turns and turns[-1].role == "assistant":
        raise ValueError(
            "the conversation ends with the assistant's turn, and beside it there is another output: "
            "keep one of them as the answer (fields.messages, fields.output)."
        )
    if not turns:
        turns = [Message("user", joint.join(part for part in (asked.instruction, asked.input) if part))]
        turns = turns if turns[0].content else []
    elif asked.instruction or asked.input:
        system = [turns.pop(0).content] if turns[0].role == "system" else []
        request = "\n".join(part for part in (asked.instruction, asked.input) if part)
        turns.insert(0, Message("system", "\n\n".join([*system, request])))
    return turns if said is None else [*turns, Message("assistant", said)]


# ---------------------------------------------------------------- templates


@dataclass(frozen=True)
class Template:
    """How a conversation is written. A turn is (what stands before its words, what stands after them).

    Attributes:
      assistant: what stands before an answer: the generation prompt.
      end: ends an answer, and is learnt with it; None: the tokenizer's eos_token.
      between: follows the end of an answer that is not the last turn.
      tool: None where the template knows no such turn.
      start: of the whole text.
      joint: stands between instruction and input.
      preamble, preamble_with_input: stand where a conversation without system turn begins.
      source_ends_with_prompt: whether an encoder–decoder's source includes the last generation prompt.
      special: tokens that the tokenizer must have.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: str
    between: str
    end: str | None = None
    tool: tuple[str, str] | None = None
    start: str = ""
    joint: str = "\n"
    preamble: str = ""
    preamble_with_input: str = ""
    source_ends_with_prompt: bool = True
    special: tuple[str, ...] = ()


TEMPLATES = {
    # tatsu-lab/stanford_alpaca, train.py (Taori et al., 2023): both texts, and the answer right behind them. A system
    # turn stands where the first sentences do; the original has neither it nor further turns.
    "alpaca": Template(
        system=("", "\n\n"),
        user=("### Instruction:\n", "\n\n"),
        assistant="### Response:",
        between="\n\n",
        joint="\n\n### Input:\n",
        preamble=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
        ),
        preamble_with_input=(
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
        ),
    ),
    # OpenAI's Chat Markup Language (2023).
    "chatml": Template(
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant="<|im_start|>assistant\n",
        end="<|im_end|>",
        between="\n",
        tool=("<|im_start|>tool\n", "<|im_end|>\n"),
        special=("<|im_start|>", "<|im_end|>"),
    ),
    # Meta's prompt format of Llama 3 and 3.1, without the system text that mentions dates. Tools answer as ipython.
    "llama-3": Template(
        start="<|begin_of_text|>",
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        between="",
        tool=("<|start_header_id|>ipython<|end_header_id|>\n\n", "<|eot_id|>"),
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # The words alone, one turn a line. An encoder–decoder's source is the question, its target the answer.
    "plain": Template(system=("", "\n"), user=("", ""), assistant="\n", between="\n", source_ends_with_prompt=False),
}


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


def written(example: Example, template: Template | None, tokenizer: Any, *, eos: str | None) -> Pieces:
    """The conversation of an example with an answer, as a template writes it.

    The assistant's pieces hold the words of a turn and what ends it: the template's end-of-turn token or EOS. The last
    of them is the end of the text.

    Args:
      template: None: the tokenizer's own chat template.
      eos: what ends an answer where the template has nothing of its own; None: there is no such token.

    Raises:
      ValueError: no answer; or the template cannot write the conversation, or changes what the assistant says.
    """
    turns = conversation(example, template.joint if template else "\n")
    if not turns or turns[-1].role != "assistant":
        ends = " (the conversation does not end with the assistant's turn)" if example.messages else ""
        raise ValueError(f"there is no answer to learn{ends}: name it in fields.output, or remove the row.")
    if not turns[-1].content.strip():
        raise ValueError("the answer is empty: fill it in, or remove the row.")
    if template is None:
        return _by_tokenizer(turns, tokenizer, eos)
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
                (turn.content + end, True),
                ("" if last else template.between, False),
            ]
            continue
        affixes = {"system": template.system, "user": template.user, "tool": template.tool}[turn.role]
        if affixes is None:
            raise ValueError(f"this template knows no {turn.role} turns: choose chatml, llama-3 or tokenizer.")
        pieces.append((affixes[0] + turn.content + affixes[1], False))
    return [piece for piece in pieces if piece[0]]


def prompt(example: Example, template: Template | None, tokenizer: Any, kind: str = "decoder") -> str:
    """What stands before the answer, exactly as in training: what a decoder continues, an encoder–decoder's source."""
    some = replace(question(example), output="x")
    pieces = written(some, template, tokenizer, eos=(tokenizer.eos_token or "") if kind == "decoder" else "")
    text = "".join(piece for piece, _ in pieces[:-1])
    if kind == "encoder_decoder" and template is not None and not template.source_ends_with_prompt:
        return text.removesuffix(template.assistant)
    return text


# ---------------------------------------------------------------- the tokenizer's own chat template

# A template may write the day of the run, and then texts would differ from one run, or one resume, to the next. Llama's
# take this one from their own default.
DATE = {"date_string": "26 Jul 2024"}
TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    *(str.strip, str.lstrip, str.rstrip),
    *(lambda s: s.strip("\n"), lambda s: s.lstrip("\n"), lambda s: s.rstrip("\n")),
)


def _by_tokenizer(turns: Sequence[Message], tokenizer: Any, eos: str | None) -> Pieces:
    text = _rendered(turns, tokenizer)
    has_marks = re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template()) is not None
    spans = _marked_spans(turns, tokenizer) if has_marks else _found_spans(turns, tokenizer, text)
    # What ends a turn: the special token that follows it, unless the template's marks include one behind the words.
    ends = special_tokens(tokenizer) - ({tokenizer.bos_token} - {tokenizer.eos_token})
    special = "|".join(re.escape(token) for token in sorted(ends, key=len, reverse=True))
    ended, follows = re.compile(rf"(?:{special})\s*$"), re.compile(rf"\s*(?:{special})")
    contents = tuple(turn.content.rstrip() for turn in turns if turn.role == "assistant")
    pieces: Pieces = []
    place = 0
    for number, (start, stop) in enumerate(spans):
        is_ended = has_marks and bool(special) and bool(ended.search(text[start:stop]))
        is_ended = is_ended and not text[start:stop].rstrip().endswith(contents)
        if special and not is_ended and (end := follows.match(text, stop)):
            stop, is_ended = end.end(), True
        pieces += [(text[place:start], False), (text[start:stop], True)]
        place = stop
        if number == len(spans) - 1 and not is_ended:
            if eos is None:
                raise ValueError(
                    "neither the tokenizer's chat template nor an eos_token ends an answer. Set one in its files."
                )
            pieces[-1] = (text[start:] + eos, True)
    return [piece for piece in pieces if piece[0]]


def _rendered(turns: Sequence[Message], tokenizer: Any, **options: Any) -> Any:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    options = options or {"tokenize": False}
    try:
        return tokenizer.apply_chat_template(messages, **options, **DATE)
    except Exception as error:  # whatever a template raises
        roles = ", ".join(turn.role for turn in turns)
        raise ValueError(
            f"the tokenizer's chat template does not take this conversation of {roles}: {error} "
            f"Choose another task.template: {', '.join(TEMPLATES)}."
        ) from error


def special_tokens(tokenizer: Any) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def _marked_spans(turns: Sequence[Message], tokenizer: Any) -> list[tuple[int, int]]:
    """What lies between the template's {% generation %} marks; transformers tells it of tokens."""
    check_fast(tokenizer)
    out = _rendered(
        turns,
        tokenizer,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    mask = np.concatenate([[0], out["assistant_masks"], [0]])
    first, last = np.flatnonzero(np.diff(mask) == 1), np.flatnonzero(np.diff(mask) == -1) - 1
    offsets = out["offset_mapping"]
    is_last = len(first) > 0
    if is_last and len(first) < sum(turn.role == "assistant" for turn in turns):  # does the template mark the last one?
        before = len(os.path.commonprefix([_rendered(turns, tokenizer), _rendered(turns[:-1], tokenizer)]))
        is_last = offsets[first[-1]][0] >= before
    if not is_last:
        raise ValueError(
            "the {% generation %} marks of the tokenizer's chat template do not hold this conversation's last answer. "
            f"Choose another task.template: {', '.join(TEMPLATES)}."
        )
    return [(offsets[a][0], offsets[b][1]) for a, b in zip(first, last, strict=True)]


def _found_spans(turns: Sequence[Message], tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Where a template without marks puts the assistant's words: where it puts other words instead of them."""
    said = [turn.content for turn in turns if turn.role == "assistant"]
    word = "answer"
    while any(word in part for part in (text, *(turn.content for turn in turns))):
        word += "q"
    others = [f"{word}{number}e" for number in range(len(said))]
    names = iter(others)
    instead = [Message(t.role, next(names)) if t.role == "assistant" else t for t in turns]
    fixed = re.split("|".join(others), rendered := _rendered(instead, tokenizer))
    if re.findall("|".join(others), rendered) == others:
        for trim in TRIMS:
            contents = [trim(content) for content in said]
            if text == fixed[0] + "".join(c + f for c, f in zip(contents, fixed[1:], strict=True)):
                before = np.cumsum([len(f) for f in fixed[:-1]])
                sizes = np.cumsum([len(c) for c in contents])
                return [(int(b + s - len(c)), int(b + s)) for b, s, c in zip(before, sizes, contents, strict=True)]
    raise ValueError(
        "the tokenizer's chat template changes what the assistant says in this conversation, or leaves a turn out, so "
        f"it is unknown what there is to learn. Choose another task.template ({', '.join(TEMPLATES)}), or put "
        "{% generation %} ... {% endgeneration %} around the assistant's words in the chat template."
    )


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


def check_fast(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell where its tokens lie in the text. "
            "Save it with a tokenizer.json (transformers' use_fast=True)."
        )


def tokenise_pieces(texts: Sequence[Pieces], tokenizer: Any) -> list[Tokens]:
    """Tokenises each text as a whole.

    A token belongs to the piece where its first visible character lies; one of white space alone, or without width, to
    the piece where it begins. So " yes" counts as the assistant's also where the space is the template's. The tokens
    that the tokenizer puts before a text (BOS) are added where the template wrote none; none are put behind it.
    """
    check_fast(tokenizer)
    probe = tokenizer("a", return_special_tokens_mask=True)
    opening = probe["input_ids"][: probe["special_tokens_mask"].index(0)]
    result = []
    for first in range(0, len(texts), 1000):  # offsets are Python objects: not those of a whole data set at once
        block = texts[first : first + 1000]
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
