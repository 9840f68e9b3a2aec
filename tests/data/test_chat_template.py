"""The Jinja form of a named template renders what training renders."""

import pytest
from transformers import PreTrainedTokenizerFast

from instructrec_jax.data.chat_template import chat_template
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.prompts import TEMPLATES, prompt, written

CHATS = [
    [("user", "Say hi."), ("assistant", "hi 🙂")],
    [("system", "Be brief."), ("user", " two\nlines "), ("assistant", "你好"), ("user", "more"), ("assistant", "ok\n")],
    [("user", '{{ 7 * 7 }} {% if %} "quoted" \\n'), ("assistant", "'single'")],
]


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("chat", CHATS)
def test_transformers_renders_the_same(name: str, chat: list, tokenizer: PreTrainedTokenizerFast) -> None:
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]")
    own.chat_template = chat_template(TEMPLATES[name])
    messages = [Message(*turn) for turn in chat]
    turns = [{"role": m.role, "content": m.content} for m in messages]
    whole = Example(instruction="", messages=tuple(messages))
    expected = "".join(text for text, _ in written(whole, TEMPLATES[name], own, eos="[SEP]"))
    assert own.apply_chat_template(turns, tokenize=False) == expected
    asked = Example(instruction="", messages=tuple(messages[:-1]))
    rendered = own.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert rendered == prompt(asked, TEMPLATES[name], own)


def test_alpaca_knows_an_input_by_its_heading(tokenizer: PreTrainedTokenizerFast) -> None:
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]")
    own.chat_template = chat_template(TEMPLATES["alpaca"])
    example = Example(instruction="Translate.", input="bonjour", output="hello")
    turn = {"role": "user", "content": "Translate.\n\n### Input:\nbonjour"}
    rendered = own.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    assert rendered == prompt(example, TEMPLATES["alpaca"], own)
