"""Chat templates by name, for models that come without one."""

from pathlib import Path

from mlx_hybrid.errors import ConfigError, nearest

ROLE = "{% if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
PLAIN = (
    "{% for message in messages %}"
    + ROLE
    + "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""Words and line breaks that every vocabulary has; an answer ends with the model's end of text."""
CHATML = (
    "{% for message in messages %}"
    + ROLE
    + "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMED = {"plain": PLAIN, "chatml": CHATML}


def template_text(name: str) -> str:
    """The template of a name, in a file, or written out. Raises ConfigError for what is none of these."""
    if name in NAMED or "{" in name:
        return NAMED.get(name, name)
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        told = f"no chat template has this name, and no file can be read there; {nearest(name, NAMED)}"
        raise ConfigError(f"--template {name}: {told}") from None
    if "{" not in text:
        raise ConfigError(
            f"--template {name}: the file holds no Jinja, so it writes nothing of a conversation."
        )
    return text
