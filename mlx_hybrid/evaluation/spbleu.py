"""The SentencePiece model that spBLEU splits words with: taken from where sacrebleu keeps it, else fetched there.

BLEU over these pieces: Goyal et al. 2022, https://aclanthology.org/2022.tacl-1.30.
"""

import os
from functools import lru_cache
from pathlib import Path

from mlx_hybrid.files import write_bytes

TOKENIZER = "flores200"
SECONDS = 20  # without an answer, before a download is given up


def tokenizer_path() -> Path:
    """Where sacrebleu looks for the model: under $SACREBLEU, else ~/.sacrebleu."""
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models" / os.path.basename(SPM_MODELS[TOKENIZER]["url"])


def missing_tokenizer(*, offline: bool) -> str:
    """Why spBLEU cannot be computed, in one sentence; empty where it can.

    Unless `offline`, a model that is not there is fetched, once a process; sacrebleu itself would end the program or
    leave half a file where that fails.
    """
    path = tokenizer_path()
    if path.is_file() and path.stat().st_size:
        return why_unreadable(path.read_bytes(), f"{path.name} in sacrebleu's folder")
    if offline:
        return "spBLEU is left out: its tokenizer is not on this machine, and offline nothing is fetched."
    return fetch(path)


@lru_cache
def fetch(path: Path) -> str:
    """Download the model, whole or not at all; why it failed, or nothing."""
    from http.client import HTTPException
    from urllib.request import build_opener

    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

    try:
        with build_opener().open(SPM_MODELS[TOKENIZER]["url"], timeout=SECONDS) as answer:
            content = answer.read()
        if told := why_unreadable(content, "what its address answers"):
            return told
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except (OSError, HTTPException) as error:  # no network, no such address, cut short, no right to write
        return f"spBLEU is left out: its tokenizer could not be fetched ({getattr(error, 'reason', error)})."
    return ""


def why_unreadable(content: bytes, name: str) -> str:
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        return f"spBLEU is left out: {name} is no SentencePiece model."
    return ""
