"""The named chat templates, for tokenizers without a chat template."""

from dataclasses import dataclass
from typing import Literal

# Named, because --help shows a setting's comment only where its type is a plain name.
TemplateName = Literal["auto", "tokenizer", "alpaca", "chatml", "llama-3", "plain"]


@dataclass(frozen=True)
class Template:
    """The layout of a conversation. A turn is (text before its content, text after it).

    Attributes:
      assistant: the generation prompt, before an answer.
      end: text after an answer, trained on with it; None: the tokenizer's eos_token.
      between: text after the `end` of an answer that is not the last turn.
      tool: None: the template has no tool turns.
      start: text before the whole conversation.
      joint: text between instruction and input.
      preamble, preamble_with_input: text before a conversation without system turn.
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
    # tatsu-lab/stanford_alpaca, train.py (Taori et al., 2023). The answer follows the prompt without a space. Our
    # extension: a system turn replaces the preamble, and there may be several turns.
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
    # Meta's prompt format of Llama 3 and 3.1, without the system text with dates. The role of tools is ipython.
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
    # The contents alone, one turn a line. An encoder–decoder's source is the question, its target the answer.
    "plain": Template(system=("", "\n"), user=("", ""), assistant="\n", between="\n", source_ends_with_prompt=False),
}
