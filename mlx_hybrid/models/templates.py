"""Chat templates by name, for models without one; and the token that ends an answer in one."""

from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.models.gguf.config import config_of

PLACE = Path(__file__).with_name("chat_templates")
NAMED = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PLACE.glob("*.jinja"))}
PLAIN = NAMED["plain"]
"""Words and line breaks that every vocabulary has; an answer ends with the model's end of text."""
ANSWER = "\u2045a\u2046"  # no template changes this


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
        raise ConfigError(f"--template {name}: the file holds no Jinja, so it writes no conversation.")
    return text


def unnamed_end(tokenizer: Any, folder: Path) -> str | None:
    """The token that ends an answer in the model's chat template where no setting names one, as `<|im_end|>`: the first
    special token, else the first added one, after an answer. "" for none there; None where one is named, or where the
    template refuses or rewrites a plain answer."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # templates raise whatever their author chose; records say so where it matters
        return None
    after = text.partition(ANSWER)[2]
    ends = map(tokenizer.convert_ids_to_tokens, named_ends(tokenizer, folder))
    if text.count(ANSWER) != 1 or any(end and end in after for end in ends):
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    for group in ([t.content for t in added if t.special], [t.content for t in added]):
        if found := [token for token in group if token in after]:
            return min(found, key=lambda token: (after.index(token), -len(token)))
    return ""


def named_ends(tokenizer: Any, folder: Path) -> list[int]:
    """Ids of the tokens that config, generation settings and tokenizer name as ends, in that order."""
    named = config_of(folder).get("eos_token_id")
    named = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(i for i in (*named, tokenizer.eos_token_id) if i is not None))
