"""The lists of words that rules go by, from words.tsv; those under a language's code are codes of its near kin."""

from pathlib import Path


def read_words() -> dict[str, frozenset[str]]:
    lines = Path(__file__).with_name("words.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return {name: frozenset(words.split()) for name, words in rows}


WORDS = read_words()
