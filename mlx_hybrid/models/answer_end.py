"""The token that ends an answer, where a model's chat template knows one and its settings do not.

Base models are often so: the template closes a turn with `<|im_end|>`, and config and tokenizer name `<|endoftext|>`
alone. Such a token is an end here too: trained, and stopped at.
"""

from pathlib import Path
from typing import Any

QUESTION, ANSWER = "\u2045q\u2046", "\u2045a\u2046"  # no template changes these


def unnamed_end(tokenizer: Any, folder: Path) -> str | None:
    """The token that ends an answer in the chat template of the model in `folder`, if no setting names it as an end.

    The first special token, else the first added one, after an answer that nothing follows. "" where no token stands
    there; None where one is named, or there is no template to see it in.
    """
    after = after_answer(tokenizer)
    ends = (tokenizer.convert_ids_to_tokens(end) for end in named_ends(tokenizer, folder))
    if after is None or any(end and end in after for end in ends):
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    for group in ([t.content for t in added if t.special], [t.content for t in added]):
        if found := [token for token in group if token in after]:
            return min(found, key=lambda token: (after.index(token), -len(token)))
    return ""


def after_answer(tokenizer: Any) -> str | None:
    """What the template writes after a last answer; None without one, or where it refuses or rewrites a plain turn."""
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # templates raise whatever their author chose; records say so where it matters
        return None
    return text.partition(ANSWER)[2] if text.count(ANSWER) == 1 else None


def named_ends(tokenizer: Any, folder: Path) -> list[int]:
    """Ids of the tokens that config, generation settings and tokenizer name as ends, in that order."""
    from mlx_hybrid.models.gguf.config import config_of

    named = config_of(folder).get("eos_token_id")
    named = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(i for i in (*named, tokenizer.eos_token_id) if i is not None))
