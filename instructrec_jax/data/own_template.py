"""Conversations as a tokenizer's own chat template writes them, and which characters the assistant says.

A template is a program, and only what it writes tells what it does. Where the assistant's words begin follows from what
the template writes before an answer (`add_generation_prompt`), where they end from the special token behind them.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from os.path import commonprefix
from typing import Any

import jinja2
import numpy as np

from instructrec_jax.data.example import REASONING, Message
from instructrec_jax.data.templates import TEMPLATES

Pieces = list[tuple[str, bool]]  # texts that make up the whole one, and whether the assistant says (and learns) it
Span = tuple[int, int, bool]  # first character, the one behind the last, and whether it is learnt
INVITED = "answers that the chat template invites otherwise than it writes them"
OTHERS = f"Choose another task.template: {', '.join(TEMPLATES)}."


@dataclass(frozen=True)
class Rendering:
    """What a chat template is told beside the conversation.

    Attributes:
      day: what it takes for today, so that no text depends on the day of the run.
      enable_thinking: given to the template under this name; None: the template decides.
    """

    day: date = date(2024, 7, 26)
    enable_thinking: bool | None = None


AS_IT_IS = Rendering()


def check_fast(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell where its tokens lie in the text. "
            "Save it with a tokenizer.json (transformers' use_fast=True)."
        )


def special_tokens(tokenizer: Any) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


_CLOCK = re.compile(r"""strftime_now\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)""")


@lru_cache(maxsize=8)
def stopped_clock(template: str, day: date) -> str:
    """A Jinja chat template that takes a day for today.

    Raises:
      ValueError: it asks for the time otherwise than by strftime_now("a fixed format").
    """

    def write(found: re.Match[str]) -> str:
        return "'" + day.strftime(found[1] or found[2] or "").replace("'", "\\'") + "'"

    stopped = _CLOCK.sub(write, template)
    if re.search(r"strftime_now\s*\(", stopped):
        raise ValueError(
            'the tokenizer\'s chat template asks for the time otherwise than by strftime_now("..."), so its texts '
            f"would change from day to day. {OTHERS}"
        )
    return stopped


class OwnTemplate:
    """The chat template of a tokenizer.

    Raises:
      ValueError: when it writes, for a conversation that it does not take, or of which it leaves something out.
    """

    def __init__(self, tokenizer: Any, rendering: Rendering, tools: Sequence[Any] = ()):
        self.tokenizer, self.tools = tokenizer, list(tools) or None
        self.source = tokenizer.get_chat_template(tools=self.tools)
        self.stopped = stopped_clock(self.source, rendering.day)
        self.told: dict[str, Any] = {"date_string": rendering.day.strftime("%d %b %Y")}
        if rendering.enable_thinking is not None:
            if not self.knows("enable_thinking"):
                raise ValueError(
                    "task.enable_thinking is set, but the tokenizer's chat template does not know it: leave it out."
                )
            self.told["enable_thinking"] = rendering.enable_thinking

    def knows(self, name: str) -> bool:
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    @property
    def has_marks(self) -> bool:
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def render(self, turns: Sequence[Message], **options: Any) -> Any:
        """What transformers' apply_chat_template gives, a text unless the options say otherwise."""
        messages = [{"role": turn.role, "content": turn.content, **turn.extra} for turn in turns]
        options = {"tokenize": False, "tools": self.tools} | options
        roles = ", ".join(turn.role for turn in turns)
        try:
            return self.tokenizer.apply_chat_template(messages, chat_template=self.stopped, **options, **self.told)
        except jinja2.TemplateError as error:  # what a template raises, and what is wrong with one
            raise ValueError(
                f"the tokenizer's chat template does not take this conversation of {roles}: {error} {OTHERS}"
            ) from error
        except (TypeError, LookupError, ArithmeticError, AttributeError) as error:
            raise ValueError(
                f"the tokenizer's chat template fails on this conversation of {roles}: {type(error).__name__}: {error}"
            ) from error

    def asked(self, turns: Sequence[Message]) -> str:
        """The conversation and what invites an answer to it."""
        return str(self.render(turns, add_generation_prompt=True))

    def invites(self, turns: Sequence[Message], asked: str) -> bool:
        """Whether the template writes something to invite an answer to these turns."""
        return asked != self.render(turns)

    def _asked(self, turns: Sequence[Message]) -> str | None:
        """`asked`, or None where the template takes no conversation without its answer, or does not invite one."""
        try:
            asked = self.asked(turns)
            return asked if self.invites(turns, asked) else None
        except ValueError:
            return None

    # ------------------------------------------------------------ the text of training

    def pieces(self, turns: Sequence[Message], eos: str | None, notes: Counter[str]) -> Pieces:
        """The conversation, which ends with an answer: see `prompts.written`."""
        self._check(turns)
        text = str(self.render(turns))
        if self.has_marks:
            spans, asked = self._marked_spans(turns), self._asked(turns[:-1])
            notes[INVITED] += asked is not None and not text[: spans[-1][0]] == asked
        else:
            spans = self._found_spans(turns, text, notes)
        # What ends a turn: the special token that follows it, unless the template's marks include one behind the words.
        ends = special_tokens(self.tokenizer) - ({self.tokenizer.bos_token} - {self.tokenizer.eos_token})
        special = "|".join(re.escape(token) for token in sorted(ends, key=len, reverse=True))
        ended, follows = re.compile(rf"(?:{special})\s*$"), re.compile(rf"\s*(?:{special})")
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
                        "neither the tokenizer's chat template nor an eos_token ends an answer. Set one in its files."
                    )
                pieces[-1] = (text[start:] + eos, learn)
        return [piece for piece in pieces if piece[0]]

    def _check(self, turns: Sequence[Message]) -> None:
        """Refuses what the template knows nothing of: see `Message.extra`."""
        for number, turn in enumerate(turns):
            for name in turn.extra if turn.role != "tool" else ():  # a tool's name and call say whose result this is
                if not self._writes(name, turns, number):
                    raise ValueError(
                        f"the tokenizer's chat template does not write {name} of messages[{number}]: to leave it out, "
                        f"set fields.ignore to [messages.{name}]."
                    )
        if self.tools and self.render(turns) == self.render(turns, tools=None):
            raise ValueError(
                "the tokenizer's chat template does not write tools: to leave them out, set fields.ignore to [tools]."
            )

    def _writes(self, name: str, turns: Sequence[Message], number: int) -> bool:
        """Whether the template knows a key of a message. (Of reasoning in earlier turns many templates write none.)"""
        if name != "name":
            return any(map(self.knows, REASONING if name in REASONING else (name,)))
        turn = turns[number]
        without = replace(turn, extra={key: value for key, value in turn.extra.items() if key != name})
        return bool(self.render(turns) != self.render([*turns[:number], without, *turns[number + 1 :]]))

    def _marked_spans(self, turns: Sequence[Message]) -> list[Span]:
        """What lies between the template's {% generation %} marks; transformers tells it of tokens."""
        check_fast(self.tokenizer)
        out = self.render(
            turns,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        mask = np.concatenate([[0], out["assistant_masks"], [0]])
        first, last = np.flatnonzero(np.diff(mask) == 1), np.flatnonzero(np.diff(mask) == -1) - 1
        offsets = out["offset_mapping"]
        said = [turn for turn in turns if turn.role == "assistant"]
        is_last = len(first) > 0
        if is_last and len(first) < len(said):  # does the template mark the last one?
            before = len(commonprefix([self.render(turns), self.render(turns[:-1])]))
            is_last = offsets[first[-1]][0] >= before
        if not is_last:
            raise ValueError(
                "the {% generation %} marks of the tokenizer's chat template do not hold this conversation's last "
                f"answer. {OTHERS}"
            )
        if len(first) != len(said):
            if not all(turn.learn for turn in said):
                raise ValueError(
                    f"the tokenizer's chat template marks {len(first)} answers of {len(said)}, so it is unknown where "
                    f"the turns of weight 0 lie. {OTHERS}"
                )
            said = said[-1:] * len(first)
        return [(offsets[a][0], offsets[b][1], turn.learn) for a, b, turn in zip(first, last, said, strict=True)]

    def _found_spans(self, turns: Sequence[Message], text: str, notes: Counter[str]) -> list[Span]:
        """Where a template without marks writes what the assistant says."""
        spans = self._verbatim_spans(turns, text)
        if spans is None:
            return self._rewritten_spans(turns, text, notes)
        asked = self._asked(turns[:-1])
        if asked is None or asked == text[: spans[-1][0]]:
            return spans
        # What the template adds between its invitation and the words (an empty block of thoughts, say) has to be
        # written by who answers, and is learnt.
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

    def _verbatim_spans(self, turns: Sequence[Message], text: str) -> list[Span] | None:
        """Where the assistant's words stand as they are, or stripped: where the template puts other words instead."""
        said = [turn for turn in turns if turn.role == "assistant"]
        if any(not turn.content.strip() or set(turn.extra) - {"name"} for turn in said):
            return None
        word = "answer"
        while any(word in part for part in (text, *(turn.content for turn in turns))):
            word += "q"
        others = [f"{word}{number}e" for number in range(len(said))]
        names = iter(others)
        instead = [Message(t.role, next(names), extra=t.extra) if t.role == "assistant" else t for t in turns]
        fixed = re.split("|".join(others), rendered := str(self.render(instead)))
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
        """What follows the template's invitation to answer, where it writes the answer in a form of its own.

        Earlier turns are learnt where they stand in the text as they did when they were the last.
        """
        spans: list[Span] = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            is_last = number == len(turns) - 1
            asked, whole = self._asked(turns[:number]), text if is_last else str(self.render(turns[: number + 1]))
            fits = asked is not None and text.startswith(whole) and whole.startswith(asked)
            if is_last and not (asked is not None and fits and _holds(whole[len(asked) :], turn)):
                raise ValueError(
                    "the tokenizer's chat template changes what the assistant says in this conversation, or leaves a "
                    f"turn out, so it is unknown what there is to learn. {OTHERS[:-1]}; or put {{% generation %}} ... "
                    "{% endgeneration %} around the assistant's words in the chat template."
                )
            if asked is not None and fits:
                spans.append((len(asked), len(whole.rstrip()), turn.learn))
            elif turn.learn:
                notes["earlier answers that the chat template rewrites, which are not learnt"] += 1
        return spans


TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    *(str.strip, str.lstrip, str.rstrip),
    *(lambda s: s.strip("\n"), lambda s: s.lstrip("\n"), lambda s: s.rstrip("\n")),
)


def _holds(text: str, turn: Message) -> bool:
    """Whether a text has all words of a turn: what it says, its reasoning, and the names of the tools it calls."""
    written = "".join(text.split())
    words = [turn.content, *(str(turn.extra[name]) for name in REASONING if name in turn.extra)]
    words += [call["function"]["name"] for call in turn.extra.get("tool_calls", ())]
    return all("".join(part.split()) in written for part in words)
