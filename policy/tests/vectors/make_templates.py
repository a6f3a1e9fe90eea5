"""Writes templates.json: what transformers' template environment makes of expressions, and of small chat templates in the
manner of well-known families (none is copied). Needs transformers 5.24 and jinja2 3.1.6; run in this folder."""

import json

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

EXPRESSIONS = r"""
'aXbXc'.rsplit('X',1)
'a b  c'.split(None,1)
'a b  c '.rsplit(None,1)
' a b '.split()
'a-b-c'.split('-', maxsplit=1)
'%s' % 'x'
'%s and %s' % ('a', 1)
'%.2f' % 3.14159
'%d%%' % 5
'x%sy' % messages[0].role ~ '!'
'abc'.swapcase()
"they're bill's".title()
'Hello World'.istitle()
'ab'.ljust(5,'.')
'ab'.rjust(5)
'-7'.zfill(4)
'abc'.center(6)
'abc'.center(8)
'a'.center(4)
'a,b'.partition(',')
'abc'.partition('x')
'abc'.rpartition('x')
'abcb'.rindex('b')
'abcb'.find('b', 2)
'abcb'.count('b')
'abc'.startswith(('x','a'))
'abc'.removeprefix('a') ~ 'abc'.removesuffix('c')
'a\r\nb\n'.splitlines()
'a\nb'.splitlines(true)
'a\tb'.expandtabs(4)
'a'.encode('utf-8')
1e20
0.00001
[1.5, 1e20]
{'a': 1e20}
1.5e300
'a' is sequence
{'a':1} is sequence
1 is sequence
{'b':1,'a':[1,2.0,none,true]}
{'b':1,'a':[1,2.0,none,true]}|tojson
{'a':1}|tojson(indent=2)
[]|tojson(indent=2)
[1,[2,{'a':'é\u2028<&>'}]]|tojson(indent=4)
'é😀'|tojson(ensure_ascii=true)
{'b':1,'a':2}|tojson(sort_keys=true)
{'b':1,'a':2}|tojson(separators=(',',':'))
'\x7f\x01"\\'|tojson
1e20|tojson
(1,2)|tojson
messages|tojson
messages[0]
'hello <b>x</b> &amp; y'|striptags
'a b, c-d'|wordcount
'a b&c/ü~'|urlencode
[1,none,2.5]|join
messages|join(', ', attribute='role')
cycler('a','b').current
cycler('a','b').next()
joiner()() ~ 'x'
(1,)
["it's", 'a\nb']
['\u200b', '\x00', '\xa0', '😀', '\\']
[undefined_x]
'a\n\nb\n'|indent(2, blank=true)
'a\nb'|indent('> ', true)
messages[::-1][0].role
messages|map(attribute='role')|list
messages|groupby('role')|list|length
[1,2].index(2)
'a'|center(5)
eos_token ~ pad_token
mask_token is defined
tools is none
raise_exception is defined
100 * 1.1
-7 // 2
'{:>5}|{:.2f}'.format('a', 1.25)
"""

# In the manner of: ChatML; Llama 2; Llama 3; Mistral v3; Gemma; Qwen 3; Phi 3; Zephyr; Command R; DeepSeek; gpt-oss; Hermes.
FAMILIES = {
    "chatml": "{% for m in messages %}\n{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}\n{% endfor %}\n{% if add_generation_prompt %}\n{{ '<|im_start|>assistant\\n' }}\n{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for m in loop_messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{{- bos_token }}\n{%- if tools is not none %}\n{{- '<|h|>ipython<|/h|>\\n\\n' }}\n{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}\n{%- endif %}\n{%- for m in messages %}\n    {%- if m.role == 'assistant' and m.tool_calls %}\n        {%- set call = m.tool_calls[0].function %}\n        {{- '<|h|>assistant<|/h|>\\n\\n{\"name\": \"' + call.name + '\", \"parameters\": ' + (call.arguments | tojson) + '}<|eot|>' }}\n    {%- else %}\n        {{- '<|h|>' + m.role + '<|/h|>\\n\\n' + m.content | trim + '<|eot|>' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\\n\\n' }}{%- endif %}",
    "mistral": "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{%- for m in rest %}{%- if m.role == 'user' %}{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}{%- elif m.role == 'assistant' %}{{- ' ' + m.content|trim + eos_token }}{%- endif %}{%- endfor %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}{% if (m['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}{{ '<turn>' + role + '\\n' + m['content'] | trim + '</turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<turn>model\\n'}}{% endif %}",
    "qwen3": "{%- set ns = namespace(last=messages|length - 1, search=true) %}{%- for m in messages[::-1] %}{%- set i = messages|length - 1 - loop.index0 %}{%- if ns.search and m.role == 'user' %}{%- set ns.search = false %}{%- set ns.last = i %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set thought = '' %}{%- set content = m.content %}{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}{%- elif '</think>' in content %}{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{%- if loop.index0 > ns.last %}{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    "phi": "{% for m in messages %}{% if m['role'] in ['system', 'user'] %}{{'<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n'}}{% elif m['role'] == 'assistant' %}{% generation %}{{'<|assistant|>\\n' + m['content'] + '<|end|>\\n'}}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
    "zephyr": "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "marked": "{% for m in messages %}\n  {% if m.role == 'assistant' %}\n<|a|>\n    {%- generation %}\n{{ m.content }}{{ eos_token }}\n    {%- endgeneration %}\n\n  {% else %}\n<|{{ m.role }}|>{{ m.content }}\n  {% endif %}\n{% endfor %}",
    "command": "{{ bos_token }}{%- macro turn(role, text) -%}<|TURN|><|{{ role|upper }}|>{{ text }}<|END|>{%- endmacro -%}{% for m in messages %}{% if m.role == 'assistant' %}{{ turn('chatbot', m.content.strip()) }}{% else %}{{ turn(m.role, m.content) }}{% endif %}{% endfor %}{% if documents %}{% for d in documents %}{{ d.title }}: {{ d.text }};{% endfor %}{% endif %}{% if add_generation_prompt %}<|TURN|><|CHATBOT|>{% endif %}",
    "counted": "{{ messages|length }} messages{% for m in messages %}\n{{ loop.index }}/{{ loop.length }} {{ '%-10s' % m.role }}: {{ m.content | indent(4) }}{{ '' if loop.last else ';' }}{% endfor %}\n",
    "oss": "{%- macro types(p) -%}{%- for name, spec in p.properties.items() %}{{ name }}{{ '' if name in p.required else '?' }}: {{ spec.type }}{{ ', ' if not loop.last }}{%- endfor %}{%- endmacro -%}{%- if tools %}{%- for t in tools %}type {{ t.function.name }} = (_: { {{- types(t.function.parameters) -}} }) => any;\n{% endfor %}{%- endif %}{%- for m in messages %}{%- if m.role == 'assistant' and m.thinking is defined %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{%- endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
}

TOOL = {"type": "function", "function": {"name": "weather", "description": "Warm <or> cold?", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Lima"}}}]}

CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hi <b>&</b> there's"}],
    "answered": [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Hello!\n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "several": [{"role": "user", "content": "é 😀"}, {"role": "assistant", "content": "ü"}, {"role": "user", "content": "line\nline"}, {"role": "assistant", "content": "x"}],
    "thinks": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4", "reasoning_content": "easy"}],
    "tagged": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"}],
    "tool": [{"role": "user", "content": "Warm?"}, CALL, {"role": "tool", "content": "19"}, {"role": "assistant", "content": "Yes."}],
}

MODES = {
    "closed": {},
    "open": {"add_generation_prompt": True},
    "continued": {"continue_final_message": True},
    "tools": {"tools": [TOOL]},
    "documents": {"documents": [{"title": "T", "text": "x"}]},
    "kwargs": {"add_generation_prompt": True, "enable_thinking": False},
}


def render(template, messages, **kwargs):
    """The text and the marked parts of it, or None where the template refuses."""
    try:
        texts, marks = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask="endgeneration" in template and not kwargs.get("continue_final_message"),
            **{"tools": None, "documents": None, **kwargs, **TOKENS},
        )
    except (jinja2.exceptions.TemplateError, ValueError, TypeError):
        return None
    return {"text": texts[0], "marked": [texts[0][start:end] for start, end in marks[0]] if marks else None}


cases = []
for family, template in FAMILIES.items():
    for name, messages in CONVERSATIONS.items():
        for mode, kwargs in MODES.items():
            cases.append({"family": family, "conversation": name, "mode": mode, "rendered": render(template, messages, **kwargs)})

messages = CONVERSATIONS["answered"]
expressions = [
    {"expression": line, "text": render("{{ " + line + " }}", messages)["text"]} for line in EXPRESSIONS.strip().split("\n")
]
with open("templates.json", "w") as file:
    json.dump(
        {
            "made_with": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}",
            "tokens": TOKENS,
            "templates": FAMILIES,
            "conversations": CONVERSATIONS,
            "modes": MODES,
            "expressions": expressions,
            "cases": cases,
        },
        file,
        indent=1,
        ensure_ascii=False,
    )
    file.write("\n")
print(len(cases), sum(case["rendered"] is None for case in cases), len(expressions))
