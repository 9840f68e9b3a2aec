"""Jinja chat templates for exported models: `transformers` renders a chat with the tokens of training."""

import json
import re

from instructrec_jax.data.example import Message
from instructrec_jax.data.own_template import OwnTemplate, Rendering, stopped_clock
from instructrec_jax.data.prompts import opening_text
from instructrec_jax.data.templates import Template
from instructrec_jax.hf_types import PreTrainedTokenizerBase


def exported_template(
    template: Template | None, tokenizer: PreTrainedTokenizerBase, rendering: Rendering
) -> str | dict[str, str]:
    """The chat template with which `apply_chat_template` gives the tokens of training.

    `apply_chat_template` adds no special tokens, so the template writes BOS itself. The tokenizer's own template gets
    the date and the `enable_thinking` of training as defaults.

    Args:
      template: a named template; None: the tokenizer's own.
    """
    opening = opening_text(tokenizer)
    if template is not None:
        return chat_template(template, "" if template.start.startswith(opening) else opening)
    asked = OwnTemplate(tokenizer, rendering).asked([Message("user", "a")])
    before = "" if asked.startswith(opening) else opening
    if isinstance(tokenizer.chat_template, dict):
        return {name: _with_defaults(source, rendering, before) for name, source in tokenizer.chat_template.items()}
    return _with_defaults(tokenizer.chat_template, rendering, before)


def _with_defaults(source: str, rendering: Rendering, before: str) -> str:
    """The template behind the text `before`, with the variables of training as defaults."""
    told = {"date_string": rendering.day.strftime("%d %b %Y"), "enable_thinking": rendering.enable_thinking}
    lines = ""
    for name, value in told.items():
        if value is not None and re.search(rf"\b{name}\b", source):
            lines += f"{{%- if {name} is not defined %}}{{%- set {name} = {json.dumps(value)} %}}{{%- endif %}}"
    stopped = stopped_clock(source, rendering.day)
    # The last line is a variable: after a block, Jinja would drop the template's first newline.
    return f"{lines}{{{{- {json.dumps(before)} }}}}{stopped}" if lines or before else stopped


def chat_template(template: Template, opening: str = "") -> str:
    """A named template for `apply_chat_template(messages, add_generation_prompt=...)`.

    Args:
      opening: text before everything else (BOS).
    """

    def say(*parts: str) -> str:
        return "{{- " + " + ".join(parts) + " -}}"

    end = "eos_token" if template.end is None else json.dumps(template.end)
    turns = {"system": template.system, "user": template.user, "tool": template.tool}
    lines = [say(json.dumps(opening + template.start))]
    if template.preamble:
        preambles = (json.dumps(text) for text in (template.preamble_with_input, template.preamble))
        lines += [
            "{%- if messages[0].role != 'system' -%}",
            say(f"({{}} if {json.dumps(template.joint)} in messages[0].content else {{}})".format(*preambles)),
            "{%- endif -%}",
        ]
    lines.append("{%- for message in messages -%}")
    lines.append("{%- if message.role == 'assistant' -%}")
    lines.append(say(json.dumps(template.assistant)))
    lines.append("{%- generation -%}" + say("message.content", end) + "{%- endgeneration -%}")
    lines.append("{%- if not loop.last -%}" + say(json.dumps(template.between)) + "{%- endif -%}")
    for role, turn in turns.items():
        if turn is not None:
            lines.append(f"{{%- elif message.role == '{role}' -%}}")
            lines.append(say(json.dumps(turn[0]), "message.content", json.dumps(turn[1])))
    lines.append(
        "{%- else -%}{{- raise_exception('This chat template knows no ' + message.role + ' turn.') -}}{%- endif -%}"
    )
    lines.append("{%- endfor -%}")
    lines.append("{%- if add_generation_prompt -%}" + say(json.dumps(template.assistant)) + "{%- endif -%}")
    return "".join(lines)
