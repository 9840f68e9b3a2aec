"""Conversations rendered by a tokenizer's own chat template, and the characters that belong to the assistant.

A template is a program, so spans are found from its output: an answer starts after the generation prompt
(`add_generation_prompt`) and ends with the special token that follows it.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache
from os.path import commonprefix

import jinja2
import numpy as np

from instructrec_jax.data.example import REASONING, Message
from instructrec_jax.data.template_flow import only_copies
from instructrec_jax.data.templates import TEMPLATES
from instructrec_jax.hf_types import PreTrainedTokenizerBase

Pieces = list[tuple[str, bool]]  # consecutive texts, and whether each is trained on
Span = tuple[int, int, bool]  # first character, character after the last, whether it is trained on
INVITED = "answers whose generation prompt differs from the text before them in training"
OTHERS = f"Choose another task.template: {', '.join(TEMPLATES)}."


@dataclass(frozen=True)
class Rendering:
    """Variables of a chat template beside the conversation.

    Attributes:
      day: the template's current date, fixed so that no text depends on the day of the run.
      enable_thinking: passed to the template; None: the template's default.
    """

    day: date = date(2024, 7, 26)
    enable_thinking: bool | None = None


AS_IT_IS = Rendering()


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which gives no offsets of its tokens in the text. "
            "Save it with a tokenizer.json (transformers' use_fast=True)."
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


_CLOCK = re.compile(r"""strftime_now\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)""")


@lru_cache(maxsize=8)
def stopped_clock(template: str, day: date) -> str:
    """A Jinja chat template with its current date replaced by a fixed day.

    Raises:
      ValueError: it reads the time other than by strftime_now("a fixed format").
    """

    def write(found: re.Match[str]) -> str:
        return "'" + day.strftime(found[1] or found[2] or "").replace("'", "\\'") + "'"

    stopped = _CLOCK.sub(write, template)
    if re.search(r"strftime_now\s*\(", stopped):
        raise ValueError(
            'the tokenizer\'s chat template reads the time other than by strftime_now("a fixed format"), so its texts '
            f"would change from day to day. {OTHERS}"
        )
    return stopped


def own_template(
    tokenizer: PreTrainedTokenizerBase, rendering: Rendering, tools: Sequence[Mapping[str, object]] = ()
) -> "OwnTemplate":
    """The tokenizer's chat template; without tools, one object for all examples."""
    if tools:
        return OwnTemplate(tokenizer, rendering, tools)
    return _shared(tokenizer, str(tokenizer.chat_template), rendering)


@lru_cache(maxsize=4)
def _shared(tokenizer: PreTrainedTokenizerBase, source: str, rendering: Rendering) -> "OwnTemplate":
    return OwnTemplate(tokenizer, rendering)


@dataclass(frozen=True)
class _Frame:
    """What a template that only copies contents writes around those of some roles: see `template_flow`.

    Attributes:
      before: the text before the first content.
      trims: of each turn, what the template does to its content.
      after: of each turn, the text after its content.
    """

    before: str
    trims: Sequence[Callable[[str], str]]
    after: Sequence[str]


class OwnTemplate:
    """The chat template of a tokenizer.

    Raises:
      ValueError: on rendering, for a conversation that the template refuses or does not render in full.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering, tools: Sequence[Mapping[str, object]] = ()
    ) -> None:
        self.tokenizer, self.tools = tokenizer, [dict(tool) for tool in tools] or None
        self.source = tokenizer.get_chat_template(tools=self.tools)
        self.stopped = stopped_clock(self.source, rendering.day)
        self._endings: dict[tuple[str, ...], str] = {}  # see `_ending_in_one_answer`
        self._frames: dict[tuple[str, ...], _Frame | None] = {}  # see `_framed`
        self.told: dict[str, object] = {"date_string": rendering.day.strftime("%d %b %Y")}
        if rendering.enable_thinking is not None:
            if not self.knows("enable_thinking"):
                raise ValueError(
                    "task.enable_thinking is set, but the tokenizer's chat template does not use it: remove it."
                )
            self.told["enable_thinking"] = rendering.enable_thinking

    def knows(self, name: str) -> bool:
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    @property
    def has_marks(self) -> bool:
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def render(self, turns: Sequence[Message], *, add_generation_prompt: bool = False, tools: bool = True) -> str:
        """The text of transformers' `apply_chat_template`. `tools`: False leaves them out."""
        told = self.tools if tools else None
        return str(self._applied(turns, tokenize=False, add_generation_prompt=add_generation_prompt, tools=told))

    def _applied(self, turns: Sequence[Message], **options: object) -> object:
        messages = [{"role": turn.role, "content": turn.content, **turn.extra} for turn in turns]
        roles = ", ".join(turn.role for turn in turns)
        apply: Callable[..., object] = self.tokenizer.apply_chat_template  # its options include the template's own
        try:
            return apply(messages, chat_template=self.stopped, **options, **self.told)
        except jinja2.TemplateError as error:  # raised by the template, or an error in it
            raise ValueError(
                f"the tokenizer's chat template refuses this conversation of {roles}: {error} {OTHERS}"
            ) from error
        except (TypeError, LookupError, ArithmeticError, AttributeError) as error:
            raise ValueError(
                f"the tokenizer's chat template fails on this conversation of {roles}: {type(error).__name__}: {error}"
            ) from error

    def asked(self, turns: Sequence[Message]) -> str:
        """The conversation with the generation prompt."""
        return self.render(turns, add_generation_prompt=True)

    def invites(self, turns: Sequence[Message], asked: str) -> bool:
        """Whether the template writes a generation prompt after these turns."""
        return asked != self.render(turns)

    def _asked(self, turns: Sequence[Message]) -> str | None:
        """`asked`, or None where the template refuses a conversation without answer or has no generation prompt."""
        try:
            asked = self.asked(turns)
            return asked if self.invites(turns, asked) else None
        except ValueError:
            return None

    # ------------------------------------------------------------ the text of training

    def pieces(self, turns: Sequence[Message], eos: str | None, notes: Counter[str]) -> Pieces:
        """The pieces of a conversation that ends with an answer: see `prompts.written`."""
        text, spans = self._framed(turns) or self._rendered(turns, notes)
        special, ended, follows = self._ends
        contents = tuple(turn.content.rstrip() for turn in turns if turn.role == "assistant" and turn.content.strip())
        pieces: Pieces = []
        place = 0
        for number, (start, stop, learn) in enumerate(spans):
            is_ended = bool(special) and bool(ended.search(text[start:stop]))
            is_ended = is_ended and not (contents and text[start:stop].rstrip().endswith(contents))
            if special and not is_ended and (end := follows.match(text, stop)):
                stop, is_ended = end.end(), True
            pieces += [(text[place:start], False), (text[start:stop], learn)]
            place = stop
            if number == len(spans) - 1 and not is_ended:
                if eos is None:
                    raise ValueError(
                        "neither the tokenizer's chat template nor an eos_token ends an answer. "
                        "Set an eos_token in the tokenizer's files."
                    )
                pieces[-1] = (text[start:] + eos, learn)
        return [piece for piece in pieces if piece[0]]

    def _rendered(self, turns: Sequence[Message], notes: Counter[str]) -> tuple[str, list[Span]]:
        text = self.render(turns)
        self._check(turns, text)
        if not self.has_marks:
            return text, self._found_spans(turns, text, notes)
        spans, asked = self._marked_spans(turns), self._asked(turns[:-1])
        notes[INVITED] += asked is not None and not text[: spans[-1][0]] == asked
        return text, spans

    def _framed(self, turns: Sequence[Message]) -> tuple[str, list[Span]] | None:
        """What `_rendered` returns, without rendering: the contents in the frame of their roles; None: unknown.

        Rendering twice, for the text and the generation prompt, would take as long as half of the tokenization.
        """
        if self.tools or any(turn.extra or not turn.content.strip() for turn in turns):
            return None
        roles = tuple(turn.role for turn in turns)
        if roles not in self._frames:
            if len(self._frames) == 64:
                return None
            self._frames[roles] = self._frame(roles) if only_copies(self.stopped) else None
        frame = self._frames[roles]
        if frame is None:
            return None
        text, spans = frame.before, []
        for turn, trim, after in zip(turns, frame.trims, frame.after, strict=True):
            content = trim(turn.content)
            if turn.role == "assistant":
                spans.append((len(text), len(text) + len(content), turn.learn))
            text += content + after
        return text, spans

    def _frame(self, roles: Sequence[str]) -> "_Frame | None":
        """None where the template refuses the roles, leaves a turn out, or has another text before the last answer."""
        edge = "\x1f"  # white space that no template writes
        turns = [Message(role, f"{edge}answer{number}e{edge}") for number, role in enumerate(roles)]
        try:
            text = self.render(turns)
        except ValueError:
            return None
        before, *parts = re.split(rf"({edge}?)answer(\d+)e({edge}?)", text)
        lefts, numbers, rights, after = (parts[first::4] for first in range(4))
        if numbers != [str(number) for number in range(len(roles))]:
            return None
        asked = self._asked(turns[:-1])
        last = lefts[-1] + f"answer{len(roles) - 1}e" + rights[-1] + after[-1]
        if asked is not None and asked + last != text:
            return None
        trims: dict[tuple[bool, bool], Callable[[str], str]]
        trims = {(True, True): str, (False, True): str.lstrip, (True, False): str.rstrip, (False, False): str.strip}
        return _Frame(before, [trims[bool(a), bool(b)] for a, b in zip(lefts, rights, strict=True)], after)

    @cached_property
    def _ends(self) -> tuple[str, re.Pattern[str], re.Pattern[str]]:
        """The special tokens that end a turn, as alternatives of a pattern; it at the end of a text; and at its start.

        A turn ends with the special token after it, unless the template's marks already include one.
        """
        ends = special_tokens(self.tokenizer) - ({self.tokenizer.bos_token} - {self.tokenizer.eos_token})
        special = "|".join(re.escape(token) for token in sorted(ends, key=len, reverse=True))
        return special, re.compile(rf"(?:{special})\s*$"), re.compile(rf"\s*(?:{special})")

    def _check(self, turns: Sequence[Message], text: str) -> None:
        """Raises ValueError for what the template does not write: system turns, tools, keys of messages."""
        for number, turn in enumerate(turns):
            if turn.role == "system" and not self._writes_system(turns, number, text):
                raise ValueError(
                    f"the tokenizer's chat template leaves out the system turn messages[{number}]: move or remove it. "
                    f"{OTHERS}"
                )
            for name in turn.extra if turn.role != "tool" else ():  # a tool turn's name and id only assign the result
                if not self._writes(name, turns, number):
                    raise ValueError(
                        f"the tokenizer's chat template does not write {name} of messages[{number}]: to leave it out, "
                        f"set fields.ignore to [messages.{name}]."
                    )
        if self.tools and text == self.render(turns, tools=False):
            raise ValueError(
                "the tokenizer's chat template does not write tools: to leave them out, set fields.ignore to [tools]."
            )

    def _writes_system(self, turns: Sequence[Message], number: int, text: str) -> bool:
        """Whether the text of the conversation depends on a system turn's content."""
        if number == 0 and turns[0].content.strip() in text:
            return True  # in nearly all conversations, without rendering them once more
        other = replace(turns[number], content=f"{turns[number].content}; others")
        return text != self.render([*turns[:number], other, *turns[number + 1 :]])

    def _writes(self, name: str, turns: Sequence[Message], number: int) -> bool:
        """Whether the template uses a key of a message. (Many templates leave out the reasoning of earlier turns.)"""
        if name != "name":
            return any(map(self.knows, REASONING if name in REASONING else (name,)))
        turn = turns[number]
        without = replace(turn, extra={key: value for key, value in turn.extra.items() if key != name})
        return self.render(turns) != self.render([*turns[:number], without, *turns[number + 1 :]])

    def _marked_spans(self, turns: Sequence[Message]) -> list[Span]:
        """The spans between the template's {% generation %} marks, from transformers' mask of tokens."""
        from transformers import BatchEncoding

        check_fast(self.tokenizer)
        out = self._applied(
            turns,
            tokenize=True,
            tools=self.tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        if not isinstance(out, BatchEncoding):
            raise TypeError(f"apply_chat_template returned {type(out).__name__}, not a BatchEncoding")
        mask = np.concatenate([[0], out["assistant_masks"], [0]])
        first, last = np.flatnonzero(np.diff(mask) == 1), np.flatnonzero(np.diff(mask) == -1) - 1
        offsets = out["offset_mapping"]
        said = [turn for turn in turns if turn.role == "assistant"]
        is_last = len(first) > 0
        if is_last and len(first) < len(said):  # does the template mark the last answer?
            before = len(commonprefix([self.render(turns), self.render(turns[:-1])]))
            is_last = offsets[first[-1]][0] >= before
        if not is_last:
            raise ValueError(
                "the {% generation %} marks of the tokenizer's chat template do not include this conversation's last "
                f"answer. {OTHERS}"
            )
        if len(first) != len(said):
            if not all(turn.learn for turn in said):
                raise ValueError(
                    f"the tokenizer's chat template marks {len(first)} answers of {len(said)}, so turns of weight 0 "
                    f"cannot be located. {OTHERS}"
                )
            said = said[-1:] * len(first)
        return [(offsets[a][0], offsets[b][1], turn.learn) for a, b, turn in zip(first, last, said, strict=True)]

    def _found_spans(self, turns: Sequence[Message], text: str, notes: Counter[str]) -> list[Span]:
        """The spans of the assistant's turns, for a template without marks."""
        if (known := self._ending_in_one_answer(turns, text)) is not None:
            return [known]
        spans = self._verbatim_spans(turns, text)
        if spans is None:
            return self._rewritten_spans(turns, text, notes)
        asked = self._asked(turns[:-1])
        if asked is None or asked == text[: spans[-1][0]]:
            if asked is not None and len(spans) == 1 and len(self._endings) < 64:
                self._endings[tuple(turn.role for turn in turns)] = text[spans[0][1] :]
            return spans
        # Text between the generation prompt and the content (an empty thinking block, say) is generated by the model
        # when it answers, so it is trained on.
        numbers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        found, before = [], 0
        for number, (start, stop, learn) in zip(numbers, spans, strict=True):
            asked = self._asked(turns[:number])
            fits = asked is not None and text.startswith(asked) and before <= len(asked) < stop
            found.append((len(asked) if asked and fits else start, stop, learn))
            before = stop
        if not fits:
            notes[INVITED] += 1
        return found

    def _ending_in_one_answer(self, turns: Sequence[Message], text: str) -> Span | None:
        """The span of the only answer where it follows the generation prompt and precedes a text known from other
        conversations of the same roles; else None. This is the usual case, and saves two of four renderings.
        """
        ending, last = self._endings.get(tuple(turn.role for turn in turns)), turns[-1]
        if ending is None or not last.content.strip() or set(last.extra) - {"name"}:
            return None
        try:
            start = len(asked := self.asked(turns[:-1]))
        except ValueError:
            return None
        contents = (trim(last.content) for trim in TRIMS)
        content = next((c for c in contents if text == asked + c + ending), None)
        return None if content is None else (start, start + len(content), last.learn)

    def _verbatim_spans(self, turns: Sequence[Message], text: str) -> list[Span] | None:
        """Spans of contents that the template writes unchanged or stripped, found by rendering placeholders.

        None where the template changes the contents.
        """
        said = [turn for turn in turns if turn.role == "assistant"]
        if any(not turn.content.strip() or set(turn.extra) - {"name"} for turn in said):
            return None
        word = "answer"
        while any(word in part for part in (text, *(turn.content for turn in turns))):
            word += "q"
        others = [f"{word}{number}e" for number in range(len(said))]
        names = iter(others)
        instead = [Message(t.role, next(names), extra=t.extra) if t.role == "assistant" else t for t in turns]
        fixed = re.split("|".join(others), rendered := self.render(instead))
        if re.findall("|".join(others), rendered) != others:
            return None
        for trim in TRIMS:
            contents = [trim(turn.content) for turn in said]
            if text == fixed[0] + "".join(c + f for c, f in zip(contents, fixed[1:], strict=True)):
                before = np.cumsum([len(f) for f in fixed[:-1]])
                ends = before + np.cumsum([len(c) for c in contents])
                return [
                    (int(end) - len(c), int(end), turn.learn) for end, c, turn in zip(ends, contents, said, strict=True)
                ]
        return None

    def _rewritten_spans(self, turns: Sequence[Message], text: str, notes: Counter[str]) -> list[Span]:
        """Spans after the generation prompt, for a template that rewrites answers.

        An earlier turn is trained on only if the text has it in the same form as when it was the last turn.
        """
        spans: list[Span] = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            is_last = number == len(turns) - 1
            asked, whole = self._asked(turns[:number]), text if is_last else self.render(turns[: number + 1])
            fits = asked is not None and text.startswith(whole) and whole.startswith(asked)
            if is_last and not (asked is not None and fits and _holds(whole[len(asked) :], turn)):
                raise ValueError(
                    "the tokenizer's chat template rewrites an answer of this conversation or omits a turn, so the "
                    f"text to train on cannot be located. {OTHERS[:-1]}; or put {{% generation %}} ... "
                    "{% endgeneration %} around the answer in the chat template."
                )
            if asked is not None and fits:
                spans.append((len(asked), len(whole.rstrip()), turn.learn))
            elif turn.learn:
                notes["earlier answers rewritten by the chat template, which are not trained on"] += 1
        return spans


TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    *(str.strip, str.lstrip, str.rstrip),
    *(lambda s: s.strip("\n"), lambda s: s.lstrip("\n"), lambda s: s.rstrip("\n")),
)


def _holds(text: str, turn: Message) -> bool:
    """Whether a text contains a turn's content, its reasoning and the names of the tools it calls."""
    written = "".join(text.split())
    words = [turn.content, *(str(turn.extra[name]) for name in REASONING if name in turn.extra)]
    calls = turn.extra.get("tool_calls")
    words += [str(call["function"]["name"]) for call in (calls if isinstance(calls, list | tuple) else ())]
    return all("".join(part.split()) in written for part in words)
