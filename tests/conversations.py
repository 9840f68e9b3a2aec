"""Conversations as templates write them: shared by the tests of prompts and of templates."""

from typing import Any

from byte_tokenizer import byte_tokenizer

from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.prompts import find_template, written

USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"


def talk(*turns: tuple[str, str], **fields: Any) -> Example:
    return Example(**({"instruction": ""} | fields), messages=tuple(Message(*turn) for turn in turns))


def text_of(example: Example, name: Any, tokenizer: Any = None) -> str:
    tokenizer = tokenizer or byte_tokenizer()
    template = find_template(name, tokenizer, "decoder")
    return "".join(text for text, _ in written(example, template, tokenizer, eos=tokenizer.eos_token))
