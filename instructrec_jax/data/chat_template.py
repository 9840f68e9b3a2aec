"""Chat templates in Jinja, so that `transformers` renders a chat as the model was trained on it."""

import json
import re
from typing import Any

from instructrec_jax.data.example import Message
from instructrec_jax.data.own_template import OwnTemplate, Rendering, stopped_clock
from instructrec_jax.data.prompts import opening_text
from instructrec_jax.data.templates import Template


def exported_template(template: Template | None, tokenizer: Any, rendering: Rendering) -> str | dict[str, str]:
    """The chat template with which `apply_chat_template` gives the tokens of training.

    It adds no tokens of its own, so the template writes what the tokenizer puts before each text (BOS). The tokenizer's
    own template keeps the day and the setting of thinking that it was told in training.

    Args:
      template: None: the tokenizer's own.
    """
    opening = opening_text(tokenizer)
    if template is not None:
        return chat_template(template, "" if template.start.startswith(opening) else opening)
    asked = OwnTemplate(tokenizer, rendering).asked([Message("user", "a")])
    before = "" if asked.startswith(opening) else opening
    if isinstance(tokenizer.chat_template, dict):
        return {name: _as_told(source, rendering, before) for name, source in tokenizer.chat_template.items()}
    return _as_told(tokenizer.chat_template, rendering, before)


def _as_told(source: str, rendering: Rendering, before: str) -> str:
    told = {"date_string": rendering.day.strftime("%d %b %Y"), "enable_thinking": rendering.enable_thinking}
    lines = ""
    for name, value in told.items():
        if value is not None and re.search(rf"\b{name}\b", source):
            lines += f"{{%- if {name} is not defined %}}{{%- set {name} = {json.dumps(value)} %}}{{%- endif %}}"
    stopped = stopped_clock(source, rendering.day)
    # a variable last: behind a block, Jinja would take the first newline of the template away
    return f"{lines}{{{{- {json.dumps(before)} }}}}{stopped}" if lines or before else stopped


def chat_template(template: Template, opening: str = "") -> str:
    """A named template for `apply_chat_template(messages, add_generation_prompt=...)`.

    Args:
      opening: what stands before everything else.
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
