"""The tokenizer and chat template of a GGUF file, as files of a model folder: byte-level or SentencePiece's BPE."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import write_json
from mlx_hybrid.models.gguf.file import GgufFile

CONTROL, USER_DEFINED = 3, 4
SPACE = "▁"
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

TABLE = Path(__file__).with_name("splits.tsv").read_text(encoding="utf-8").splitlines()
SPLITS = {name: row[1:] for row in (line.split("\t") for line in TABLE) for name in row[0].split()}
"""How a text is split, by the name in `tokenizer.ggml.pre`: a way and a pattern, "" for GPT-2's. `whole` takes a piece
that is in the vocabulary as it is, whatever the merges say, and begins with BOS."""


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
    for marked, add in ((CONTROL, made.add_special_tokens), (USER_DEFINED, made.add_tokens)):
        own = [t for t, kind in zip(tokens, types, strict=True) if kind == marked and not is_spaces(t)]
        add([AddedToken(token, normalized=False, special=marked == CONTROL) for token in own])
    begin, usual = about("bos_token_id"), kind == "llama" or SPLITS[split][0] == "whole"
    if begin is not None and about("add_bos_token", usual):
        token = tokens[begin]
        made.post_processor = processors.TemplateProcessing(f"{token} $A", None, [(token, begin)])
    return made


def byte_level(file: GgufFile, tokens: list[str], split: str) -> Tokenizer:
    """Byte-level BPE. Raises ConfigError for a way of splitting that is not known: its tokens would be others."""
    if split not in SPLITS:
        raise ConfigError(f"{file.path}: its tokenizer splits texts as {split} does, which is not read.")
    (way, pattern), merges = SPLITS[split], file.tokenizer("merges", [])
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    made = Tokenizer(models.BPE(vocabulary(tokens), pairs, ignore_merges=way == "whole"))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)]
    if way == "digits":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if pattern:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    if way == "nfc":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    return made


def sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE, with a space before the text where the file does not say otherwise."""
    scores = file.tokenizer("scores") or [-float(i) for i in range(len(tokens))]
    unknown = tokens[file.tokenizer("unknown_token_id", 0)]
    how = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    made = Tokenizer(models.BPE(vocabulary(tokens), merges_of(tokens, scores, types), **how))
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
