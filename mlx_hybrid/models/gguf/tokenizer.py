"""The tokenizer and chat template of a GGUF file, as files of a model folder: byte-level or SentencePiece's BPE."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import write_json
from mlx_hybrid.models.gguf.file import GgufFile

CONTROL, USER_DEFINED = 3, 4
SPACE = "▁"
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + SIGNS
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"
CASED = rf"{BEFORE}{UPPER}*{LOWER}+END|{BEFORE}{UPPER}+{LOWER}*END|\p{{N}}NUMBERS|"
CASED += SIGNS.replace(r"+[\r\n]", r"+[\r\n/]")
GPT4O = CASED.replace("END", f"{ENDINGS}?").replace("NUMBERS", "{1,3}")
TEKKEN = CASED.replace("END", "").replace("NUMBERS", "")
SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), GPT4O),
    "tekken": TEKKEN,
    **dict.fromkeys(("gpt-2", "default", "smollm", "phi-2"), None),
}
"""How a text is split, by the name in `tokenizer.ggml.pre`; None is GPT-2's way."""
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
"""Ways that take a piece which is in the vocabulary whole, whatever the merges say, and begin with BOS."""


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """The files of the tokenizer. Raises ConfigError for one that is not read."""
    about = file.tokenizer
    tokens, ids = about("tokens"), {name: about(f"{key}_token_id") for name, key in SPECIAL.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"model_max_length": file.about("context_length")}
    settings |= {"chat_template": file.metadata.get("tokenizer.chat_template")}
    settings |= {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
    try:
        tokenizer_of(file).save(str(folder / "tokenizer.json"))
    except ConfigError:
        raise
    except Exception as error:  # the library knows no other kind
        raise ConfigError(f"{file.path}: its tokenizer is damaged ({error}).") from error
    write_json(folder / "tokenizer_config.json", settings)


def tokenizer_of(file: GgufFile) -> Tokenizer:
    about, kind, split = file.tokenizer, file.tokenizer("model"), file.tokenizer("pre", "default")
    tokens = list(about("tokens"))
    types = about("token_type") or [1] * len(tokens)
    if kind == "gpt2":
        made = byte_level(file, tokens, split)
    elif kind == "llama":  # GGUF spells runs of spaces out
        tokens = [t.replace(" ", SPACE) if is_spaces(t) else t for t in tokens]
        made = sentencepiece(file, tokens, types)
    else:
        raise ConfigError(f"{file.path}: its tokenizer is of the kind {kind}; gpt2 and llama are read.")
    for marked, special, add in (
        (CONTROL, True, made.add_special_tokens),
        (USER_DEFINED, False, made.add_tokens),
    ):
        own = [t for t, kind in zip(tokens, types, strict=True) if kind == marked and not is_spaces(t)]
        add([AddedToken(token, normalized=False, special=special) for token in own])
    begin = about("bos_token_id")
    if begin is not None and about("add_bos_token", kind == "llama" or split in WHOLE_WORDS):
        token = tokens[begin]
        made.post_processor = processors.TemplateProcessing(f"{token} $A", None, [(token, begin)])
    return made


def byte_level(file: GgufFile, tokens: list[str], split: str) -> Tokenizer:
    """Byte-level BPE. Raises ConfigError for a way of splitting that is not known: its tokens would be others."""
    if split not in SPLITS:
        raise ConfigError(f"{file.path}: its tokenizer splits texts as {split} does, which is not read.")
    pattern, merges = SPLITS[split], file.tokenizer("merges", [])
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    made = Tokenizer(models.BPE(vocabulary(tokens), pairs, ignore_merges=split in WHOLE_WORDS))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if split == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if pattern:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    if pattern == QWEN2:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    return made


def sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE, with a space before the text where the file does not say otherwise."""
    scores = file.tokenizer("scores") or [-float(i) for i in range(len(tokens))]
    unknown = tokens[file.tokenizer("unknown_token_id", 0)]
    pairs = merges_of(tokens, scores, types)
    how = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    made = Tokenizer(models.BPE(vocabulary(tokens), pairs, **how))
    made.normalizer = normalizers.Replace(" ", SPACE)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.tokenizer("add_space_prefix", True):
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), made.normalizer])
        back.append(decoders.Strip(" ", 1, 0))
    made.decoder = decoders.Sequence(back)
    return made


def merges_of(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Every pair of entries that makes a third: first those of user-defined entries, then by score."""
    known, found = set(tokens), []
    for number, token in enumerate(tokens):
        if types[number] == CONTROL:
            continue
        rank = (0.0 if types[number] == USER_DEFINED else 1.0 - scores[number], number)
        cuts = [cut for cut in range(1, len(token)) if token[:cut] in known and token[cut:] in known]
        found += [(rank, -cut, (token[:cut], token[cut:])) for cut in cuts]
    return [pair for *_, pair in sorted(found)]


def vocabulary(tokens: list[str]) -> dict[str, int]:
    """Ids by token, a token that is there twice under the first."""
    return {token: number for number, token in reversed(list(enumerate(tokens)))}


def is_spaces(token: str) -> bool:
    return bool(token) and not token.strip(" " + SPACE)
