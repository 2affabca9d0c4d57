"""Text in parts, trained or not, as tokens and a mask of the trained ones."""

from dataclasses import dataclass
from typing import Any

from mlx_hybrid.errors import DataError


class SetAside(DataError):
    """A record that cannot be trained as it would be asked; its reason names no place."""


@dataclass(frozen=True)
class Example:
    """One record as tokens; `trained[i]` says whether token i is learnt."""

    tokens: list[int]
    trained: list[bool]
    where: str = ""
    language: str = ""
    text_bytes: int = 0
    context_answers: int = 0
    """Answers that are context only: the template writes them otherwise than it asks for them."""
    unwritten: tuple[str, ...] = ()
    """What the template leaves out: reasoning, tools, system turn."""
    weights: tuple[float, ...] = ()
    """What each token's loss counts, where some of the prompt is learnt a little too; 1 or 0 by `trained` otherwise."""
    digest: str = ""
    """sha256 of the record's fields: what a run is known by, whatever date its template writes."""
    label: str = ""

    @property
    def trained_count(self) -> int:
        """Targets: a first token is never one."""
        return sum(self.trained[1:])


def text_tokens(text: str, tokenizer: Any) -> Example:
    """Plain text: trained from its first token on, but for what the tokenizer puts before it."""
    bare, tokens = tokenizer.bare(text), tokenizer.document(text)
    if not bare.strip():
        raise SetAside("the text is empty but for its beginning and end")
    begin = len(tokenizer.begun([]))
    return Example(tokens, [i >= begin for i in range(len(tokens))], text_bytes=len(bare.encode()))


def closed(tokens: list[int], trained: list[bool], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokens whose last answer gets the EOS token that its template does not write."""
    ended = tokenizer.ended(tokens)
    return ended, [*trained, True][: len(ended)]


def tokenise(parts: list[tuple[str, bool]], tokenizer: Any, asked: list[int]) -> tuple[list[int], list[bool]]:
    """Tokens and mask of text in parts, trained or not, of which the first is asked as the tokens `asked`.

    Parts are tokenised one by one, as generation meets them. Where that spells another text (some tokenizers put a
    space before every text) the whole's tokens are placed by offset; SetAside if they do not begin with those asked.
    """
    pieces = [asked, *(tokenizer.tokens_of(text) for text, _ in parts[1:])]
    tokens = [token for piece in pieces for token in piece]
    text = "".join(text for text, _ in parts)
    whole = tokenizer.begun(tokenizer.tokens_of(text))
    if tokens == whole or tokenizer.decode(tokens) == tokenizer.decode(whole):
        return tokens, [kept for (_, kept), piece in zip(parts, pieces, strict=True) for _ in piece]
    trained = by_offset(parts, text, tokenizer, len(whole))
    if len(trained) != len(whole) or whole[: len(asked)] != asked or trained.index(True) != len(asked):
        raise SetAside("its tokens cannot be parted where the answer begins")
    return whole, trained


def by_offset(parts: list[tuple[str, bool]], text: str, tokenizer: Any, length: int) -> list[bool]:
    """The mask of the whole text's tokens, by where their middles stand in it."""
    spelt = tokenizer._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    kept = [flag for part, flag in parts for _ in part]
    mask = [b > a and kept[(a + b) // 2] for a, b in spelt["offset_mapping"]]
    return [False] * (length - len(mask)) + mask
