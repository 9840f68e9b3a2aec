"""The named chat templates, against the texts that their authors published."""

import re
from typing import get_args

import pytest
from conversations import ASSISTANT, SYSTEM, TOOL, USER, talk, text_of

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import (
    TEMPLATES,
)
from instructrec_jax.data.templates import TemplateName


def test_alpaca_is_stanfords() -> None:
    # PROMPT_DICT and preprocess of tatsu-lab/stanford_alpaca, train.py
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    )
    both = Example(instruction="Add.", input="1 2", output="3")
    assert text_of(both, "alpaca") == with_input.format(instruction="Add.", input="1 2") + "3</s>"
    assert text_of(Example(instruction="Hi", output="Ho"), "alpaca") == without.format(instruction="Hi") + "Ho</s>"
    several = talk((SYSTEM, "Be kind."), (USER, "a"), (ASSISTANT, "b"), (USER, "c"), (ASSISTANT, "d"))
    assert text_of(several, "alpaca") == (
        "Be kind.\n\n### Instruction:\na\n\n### Response:b</s>\n\n### Instruction:\nc\n\n### Response:d</s>"
    )


def test_chatml_and_llama_3_are_as_published() -> None:
    several = talk((SYSTEM, "s"), (USER, "a"), (ASSISTANT, "b"), (TOOL, "t"), (ASSISTANT, "d"))
    assert text_of(several, "chatml") == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>tool\nt<|im_end|>\n<|im_start|>assistant\nd<|im_end|>"
    )

    def turn(role: str, words: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{words}<|eot_id|>"

    assert text_of(several, "llama-3") == "<|begin_of_text|>" + "".join(
        [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("ipython", "t"), turn("assistant", "d")]
    )


def test_plain() -> None:
    assert text_of(Example(instruction="a", input="b", output="c"), "plain") == "a\nb\nc</s>"
    several = talk((SYSTEM, "s"), (USER, "a"), (ASSISTANT, "b"), (USER, "c"), (ASSISTANT, "d"))
    assert text_of(several, "plain") == "s\na\nb</s>\nc\nd</s>"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_text_of_a_conversation_stands_once_and_in_order(name: str) -> None:
    turns = [(SYSTEM, "aa"), (USER, "bb"), (ASSISTANT, "cc"), (USER, "dd"), (ASSISTANT, "ee")]
    text = text_of(talk(*turns), name)
    places = [text.index(said) for _, said in turns]
    assert places == sorted(places) and all(text.count(said) == 1 for _, said in turns)


def test_the_names_of_the_setting_are_the_templates() -> None:
    assert set(get_args(TemplateName)) == {"auto", "tokenizer", *TEMPLATES}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_special_tokens_are_those_that_the_texts_have(name: str) -> None:
    """A token that a template writes but does not declare would be split into letters, without an error."""
    template = TEMPLATES[name]
    texts = "".join(
        [template.start, *template.system, *template.user, *(template.tool or ()), template.assistant]
        + [template.between, template.end or "", template.joint, template.preamble, template.preamble_with_input]
    )
    assert set(re.findall(r"<\|\w+\|>", texts)) == set(template.special)
