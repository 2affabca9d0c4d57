"""Chat templates with the habits of known families, each as short as its habit allows, over ChatML's tokens."""

from toys import CHATML

HEAD = "<|im_start|>{{ m['role'] }}\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
STRICT = (  # gemma 2: no system turn, turns alternate, the assistant is called model
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
FOLDS = (  # gemma 3: the system turn goes into the first user turn
    "{% set first = '' %}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    + HEAD
    + "{{ first if loop.first else '' }}{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    + ASK
)
DATED = (  # llama 3: writes the date, and a tool call as JSON, one at a time
    "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n{% for m in messages %}"
    "{% if 'tool_calls' in m %}<|im_start|>assistant\n{\"name\": \"{{ m['tool_calls'][0]['function']['name'] }}\", "
    "\"parameters\": {{ m['tool_calls'][0]['function']['arguments'] | tojson }}}<|im_end|>\n"
    "{% else %}" + HEAD + "{{ m['content'] | trim }}<|im_end|>\n{% endif %}{% endfor %}" + ASK
)
CALLS = (  # qwen 2.5: tools in the system turn, calls in tags
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}" + HEAD + "{{ m['content'] }}{% for c in m['tool_calls'] or [] %}"
    "<tool_call>{\"name\": \"{{ c['function']['name'] }}\", \"arguments\": {{ c['function']['arguments'] | tojson }}}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}" + ASK
)
THINKS = (  # qwen 3: a last answer after <think>…</think>, older ones without; can be asked not to think
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set c = m['content'] %}{% set r = '' %}"
    "{% if m['reasoning_content'] is string %}{% set r = m['reasoning_content'] %}"
    "{% elif '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}"
    "{% else %}" + HEAD + "{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ALWAYS_THINKS = (  # opens the reasoning in the prompt itself
    "{% for m in messages %}" + HEAD + "{% if m['role'] == 'assistant' %}<think>\n"
    "{{ m['reasoning_content'] or '' }}\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
NO_END = (  # closes an answer with nothing
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
TEMPLATES = {
    "none": None, "chatml": CHATML, "strict": STRICT, "folds": FOLDS, "dated": DATED, "calls": CALLS,
    "thinks": THINKS, "always thinks": ALWAYS_THINKS, "no end": NO_END,
}  # fmt: skip
