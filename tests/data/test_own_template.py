"""Chat templates that rewrite what the assistant says, invite it, write tools or the date."""

from collections import Counter
from datetime import date
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer

from instructrec_jax.data import own_template
from instructrec_jax.data.chat_template import exported_template
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.own_template import INVITED, Rendering
from instructrec_jax.data.prompts import TEMPLATES, prompt, tokenize_pieces, written

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: thoughts are taken apart, written for the turn after the last question, and left out of earlier ones.
THINKING = (
    "{% set ns = namespace(asked=0) %}{% for m in messages if m.role == 'user' %}"
    "{% set ns.asked = messages.index(m) %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set said = m.content %}{% set why = m.reasoning_content or '' %}{% if m.role == 'assistant' %}"
    "{% if '</think>' in said %}{% set why = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set said = said.split('</think>')[-1].strip() %}{% endif %}"
    "{% if loop.index0 > ns.asked %}<think>\n{{ why }}\n</think>\n\n{% endif %}{% endif %}{{ said }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As DeepSeek-R1's: invites thoughts, and writes none of them in a finished conversation.
R1 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<think>\n{% endif %}"
)


def own(template: str, **settings: Any) -> Any:
    return byte_tokenizer(chat_template=template, **settings)


def talk(*said: str | Message, **fields: Any) -> Example:
    turns = [m if isinstance(m, Message) else Message(("user", "assistant")[n % 2], m) for n, m in enumerate(said)]
    return Example(instruction="", messages=tuple(turns), **fields)


def pieces(example: Example, template: str, notes: Counter[str] | None = None, **told: Any) -> list[tuple[str, bool]]:
    return written(example, None, own(template), eos="</s>", rendering=Rendering(**told), notes=notes)


def learnt(example: Example, template: str, notes: Counter[str] | None = None, **told: Any) -> list[str]:
    return [text for text, said in pieces(example, template, notes, **told) if said]


def asked_by_transformers(example: Example, tokenizer: Any, **told: Any) -> str:
    turns = [{"role": m.role, "content": m.content, **m.extra} for m in example.messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **told))


# ------------------------------------------------------------------ thoughts


@pytest.mark.parametrize(
    "answer",
    [
        "<think>\nhm\n</think>\n\nyes",
        "<think>hm</think>yes",
        Message("assistant", "yes", extra={"reasoning_content": "hm"}),
        Message("assistant", "yes", extra={"thinking": "hm"}),
    ],
)
def test_the_last_turn_is_learnt_as_the_template_writes_it(answer: str | Message) -> None:
    example = talk("q", answer)
    assert learnt(example, THINKING) == ["<think>\nhm\n</think>\n\nyes<|im_end|>"]
    assert prompt(example, None, own(THINKING)) == asked_by_transformers(talk("q"), own(THINKING))


def test_earlier_thoughts_are_left_out_by_the_template_and_told() -> None:
    notes: Counter[str] = Counter()
    example = talk("q", "<think>\na\n</think>\n\nb", "r", "<think>\nc\n</think>\n\nd")
    assert learnt(example, THINKING, notes) == ["<think>\nc\n</think>\n\nd<|im_end|>"]
    assert sum(notes.values()) == 1
    plain = "{% for m in messages %}" + CHATML.split("messages %}")[1]
    assert learnt(example, plain) == [m.content + "<|im_end|>" for m in example.messages if m.role == "assistant"]


def test_what_the_invitation_does_not_give_is_learnt() -> None:
    """Asked as by default, the model has to write the empty block; asked not to think, it is given."""
    example, tokenizer = talk("q", "yes"), own(THINKING)
    assert learnt(example, THINKING) == ["<think>\n\n</think>\n\nyes<|im_end|>"]
    assert learnt(example, THINKING, enable_thinking=False) == ["yes<|im_end|>"]
    for told in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        asked = prompt(example, None, tokenizer, rendering=Rendering(**told))
        assert asked == asked_by_transformers(talk("q"), tokenizer, **told)
        assert "".join(text for text, _ in pieces(example, THINKING, **told)).startswith(asked)


def test_an_invitation_that_the_template_does_not_write_itself() -> None:
    notes: Counter[str] = Counter()
    assert learnt(talk("q", "yes"), R1, notes) == ["yes<|im_end|>"] and notes[INVITED] == 1
    assert prompt(talk("q"), None, own(R1)).endswith("assistant<think>\n")  # as transformers asks
    with pytest.raises(ValueError, match="task.template"):  # the thoughts would be lost
        learnt(talk("q", "<think>hm</think>yes"), R1)


def test_enable_thinking_is_refused_where_it_says_nothing() -> None:
    with pytest.raises(ValueError, match="task.enable_thinking"):
        learnt(talk("q", "yes"), CHATML, enable_thinking=False)


def test_thoughts_that_no_template_writes_are_an_error() -> None:
    example = talk("q", Message("assistant", "yes", extra={"reasoning_content": "hm"}))
    for name in (None, "chatml", "alpaca", "plain"):
        template = None if name is None else TEMPLATES[name]
        with pytest.raises(ValueError, match=r"messages.reasoning_content"):
            written(example, template, own(CHATML), eos="</s>")


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", ["own", "chatml", "marked"])
def test_turns_of_weight_0_are_context(name: str) -> None:
    marked = CHATML.replace("{{ m.content }}<|im_end|>", "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
                            "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}")  # fmt: skip
    tokenizer = own(marked if name == "marked" else CHATML)
    template = TEMPLATES["chatml"] if name == "chatml" else None
    example = talk("q", Message("assistant", "bad", learn=False), "r", "good")
    found = written(example, template, tokenizer, eos="</s>")
    assert [text for text, said in found if said] == ["good<|im_end|>"]
    assert "bad" in "".join(text for text, _ in found)
    first = talk("q", "good", "r", Message("assistant", "bad", learn=False))
    assert [text for text, said in written(first, template, tokenizer, eos="</s>") if said] == ["good<|im_end|>"]
    with pytest.raises(ValueError, match="weight 0"):
        written(talk("q", Message("assistant", "bad", learn=False)), template, tokenizer, eos="</s>")


# ------------------------------------------------------------------ tools

TOOLS: tuple[Any, ...] = ({"type": "function", "function": {"name": "add", "parameters": {}}},)
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}",
)


def test_tools_are_given_to_the_template() -> None:
    assert '"name": "add"' in "".join(text for text, _ in pieces(talk("q", "yes", tools=TOOLS), WITH_TOOLS))
    assert '"name": "add"' in prompt(talk("q", tools=TOOLS), None, own(WITH_TOOLS))
    for template in (None, TEMPLATES["chatml"]):
        with pytest.raises(ValueError, match=r"\[tools\]"):
            written(talk("q", "yes", tools=TOOLS), template, own(CHATML), eos="</s>")


def test_calls_of_tools_are_learnt_as_the_template_writes_them() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    turns = [Message("assistant", "", extra={"tool_calls": [call]}), Message("tool", "4"), Message("assistant", "four")]
    example = talk("q", *turns, tools=TOOLS)
    written_call = '<call>{"name": "add", "arguments": {"a": 2}}</call><|im_end|>'
    assert learnt(example, WITH_TOOLS) == [written_call, "four<|im_end|>"]
    with pytest.raises(ValueError, match="tool_calls"):
        learnt(example, CHATML)


# ------------------------------------------------------------------ the date


def test_the_clock_stands_still() -> None:
    template = "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%d %b\") }} " + CHATML
    for day, shown in ((date(2024, 7, 26), "2024-07-26 26 Jul "), (date(2025, 1, 2), "2025-01-02 02 Jan ")):
        text = "".join(text for text, _ in pieces(talk("q", "a"), template, day=day))
        assert (
            text.startswith(shown)
            and prompt(talk("q"), None, own(template), rendering=Rendering(day))[:10] == shown[:10]
        )
    with pytest.raises(ValueError, match="strftime_now"):
        pieces(talk("q", "a"), "{% set f = '%Y' %}{{ strftime_now(f) }}" + CHATML)


# ------------------------------------------------------------------ what an export asks

DATED = "\n{{ strftime_now('%d %b') }}{{ date_string }}" + CHATML


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        *TEMPLATES,
        CHATML,
        THINKING,
        "{{ bos_token }}" + CHATML,
        DATED,
    ],
)
def test_an_exported_template_asks_the_tokens_of_training(name: str, bos: bool) -> None:
    template = TEMPLATES.get(name)
    tokenizer = byte_tokenizer(bos=bos) if template else own(name, bos=bos)
    thinks = False if "enable_thinking" in name else None
    rendering = Rendering(date(2025, 1, 2), thinks)
    for example in (talk("q", "a", "r"), talk("q")):
        (ours,) = tokenize_pieces([[(prompt(example, template, tokenizer, rendering=rendering), False)]], tokenizer)
        exported = byte_tokenizer(bos=bos, chat_template=exported_template(template, tokenizer, rendering))
        turns = [{"role": m.role, "content": m.content} for m in example.messages]
        ids = exported.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert ids == ours.ids.tolist() and ids.count(1) == (bos or "bos_token" in name)
        (whole,) = tokenize_pieces(
            [written(talk("q", "a"), template, tokenizer, eos="</s>", rendering=rendering)], tokenizer
        )
    assert tokenizer.decode(whole.ids).startswith(exported.decode(ids))  # of the last one, which training answers


# ------------------------------------------------------------------ templates that only copy


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        CHATML.replace("m.content", "m.content | trim"),
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),  # left out
        "{% for m in messages %}[{{ m.role }}] {{ m.content.strip() }}{{ eos_token if loop.last }}{% endfor %}",
        CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}"),  # another text before the answer
    ],
)
def test_copied_contents_give_what_rendering_gives(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [
        [Message("user", f"{left}q {number}{right}"), Message("assistant", f"{left}a answer0e \x1f{number}{right}")]
        for number, (left, right) in enumerate([("", ""), (" ", "\n"), ("\n\n", " \t"), ("<|im_end|>", "</s>")])
    ]
    talks += [
        [*talk, Message("user", "q"), Message("assistant", "b", learn=number % 2 == 0)]
        for number, talk in enumerate(talks)
    ]
    talks += [[Message("system", " s "), *talk] for talk in talks]

    def found() -> list[object]:
        tokenizer, notes, each = own(template), Counter[str](), list[object]()
        for talk in talks:
            try:
                each.append(
                    written(Example(instruction="", messages=tuple(talk)), None, tokenizer, eos="</s>", notes=notes)
                )
            except ValueError as error:
                each.append(str(error))
        return [each, +notes]

    quick = found()
    monkeypatch.setattr(own_template, "only_copies", lambda template: False)
    assert quick == found()


def test_a_template_that_only_copies_is_rendered_once_per_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, rendered = own(CHATML), []
    apply = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **b: rendered.append(1) or apply(*a, **b))
    examples = [Example(instruction=f"q{number}", output="a") for number in range(20)]
    texts = ["".join(text for text, _ in written(e, None, tokenizer, eos="</s>")) for e in examples]
    assert (
        texts[7]
        == apply([{"role": "user", "content": "q7"}, {"role": "assistant", "content": "a"}], tokenize=False).rstrip()
    )
    assert len(rendered) <= 3
