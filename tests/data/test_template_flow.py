"""Which chat templates only copy contents: those whose text around them depends on the roles alone."""

import pytest

from instructrec_jax.data.template_flow import only_copies

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set told = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set told = '' %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "{% if loop.first %}{% set said = told ~ m.content.strip() %}{% else %}{% set said = m.content %}{% endif %}"
    "[INST] {{ said }}{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [
        LLAMA_3,
        LLAMA_2,
        "{% for m in messages %}{{ m.role }}{{ m['content'] if m.content is string else '' }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' and not m.tool_calls %}{{ m.content }}{% endif %}{% endfor %}",
        "{{ messages[messages | length - 1].content }}{% if add_generation_prompt and not tools %}A:{% endif %}",
        "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    ],
)
def test_contents_are_copied(template: str) -> None:
    assert only_copies(template)


@pytest.mark.parametrize(
    "body",
    [
        "{% if '</think>' in m.content %}a{% endif %}",
        "{{ 'a' if m.content else 'b' }}",
        "{{ m.content or 'b' }}",
        "{{ m.content | upper }}",
        "{{ m.content | tojson }}",
        "{{ m.content | trim('x') }}",
        "{{ m.content.split('</think>')[-1] }}",
        "{{ m.content[:3] }}",
        "{{ m['con' + 'tent'] | upper }}",
        "{{ m.get('content') | upper }}",
        "{% for key, value in m.items() %}{{ value | upper }}{% endfor %}",
        "{% for part in m.content %}{{ part }}{% endfor %}",
        "{% for n in messages if n.content %}a{% endfor %}",
        "{{ loop.previtem.content | upper }}",
        "{{ messages | map(attribute='content') | join }}",
        "{{ messages[m.content | length] }}",
        "{{ m }}",
        "{{ m | tojson }}",
        "{% set x = m.content ~ '' %}{{ 'a' if x == 'b' else 'c' }}",
        "{% set x %}{{ m.content }}{% endset %}{{ x | upper }}",
        "{% set ns = namespace() %}{% set ns.x = m.content %}{{ ns.x | upper }}",
        "{% set ns = namespace(x=m.content) %}{{ ns.x | upper }}",
        "{% filter upper %}{{ m.content }}{% endfilter %}",
        "{% macro write(x) %}{{ x | upper }}{% endmacro %}{{ write(m.content) }}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
        "{% if %}",
    ],
)
def test_whatever_else_counts_as_a_decision(body: str) -> None:
    assert not only_copies("{% for m in messages %}" + body + "{% endfor %}")
