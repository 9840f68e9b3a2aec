"""A named template as a Jinja chat template, so that `transformers` renders a chat as the model was trained on it."""

import json

from instructrec_jax.data.prompts import Template


def chat_template(template: Template) -> str:
    """What a tokenizer's `chat_template` has to be: for `apply_chat_template(messages, add_generation_prompt=...)`."""

    def say(*parts: str) -> str:
        return "{{- " + " + ".join(parts) + " -}}"

    end = "eos_token" if template.end is None else json.dumps(template.end)
    turns = {"system": template.system, "user": template.user, "tool": template.tool}
    lines = [say(json.dumps(template.start))]
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
