"""The named templates: how a conversation is written where the tokenizer has no chat template of its own."""

from dataclasses import dataclass
from typing import Literal

# Named, because --help shows a setting's comment only where its type is a plain name.
TemplateName = Literal["auto", "tokenizer", "alpaca", "chatml", "llama-3", "plain"]


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
