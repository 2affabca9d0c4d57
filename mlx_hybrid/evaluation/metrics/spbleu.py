"""spBLEU by sacrebleu: its SentencePiece model from where sacrebleu keeps it, and fetched there on request.

BLEU over these pieces: Goyal et al. 2022, https://aclanthology.org/2022.tacl-1.30.
"""

import os
from pathlib import Path
from typing import Any

from mlx_hybrid.files import write_bytes

TOKENIZER = "flores200"
SECONDS = 20  # without an answer, before a download is given up


def bleu() -> Any:
    """sacrebleu's BLEU over the pieces; its tokenizer must be there."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=TOKENIZER)


def tokenizer_path() -> Path:
    """Where sacrebleu looks for the model: under $SACREBLEU, else ~/.sacrebleu."""
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models" / os.path.basename(SPM_MODELS[TOKENIZER]["url"])


def missing_tokenizer() -> str:
    """Why spBLEU cannot be computed, in one sentence; empty where it can. Nothing is fetched."""
    path = tokenizer_path()
    if path.is_file() and path.stat().st_size:
        return why_unreadable(path.read_bytes(), f"{path.name} in sacrebleu's folder")
    return "spBLEU is left out: its tokenizer is not on this machine; `evaluate --spbleu` fetches it."


def fetch_tokenizer(*, offline: bool) -> str:
    """Fetch the model where it is not yet, whole or not at all; why that failed, or nothing.

    sacrebleu itself would fetch it unasked, and end the program or leave half a file where that fails.
    """
    from http.client import HTTPException
    from urllib.request import build_opener

    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

    path = tokenizer_path()
    if path.is_file() and path.stat().st_size:
        return ""
    if offline:
        return "--spbleu: offline nothing is fetched."
    try:
        with build_opener().open(SPM_MODELS[TOKENIZER]["url"], timeout=SECONDS) as answer:
            content = answer.read()
        if told := why_unreadable(content, "what its address answers"):
            return told
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except (OSError, HTTPException) as error:  # no network, no such address, cut short, no right to write
        return f"--spbleu: its tokenizer could not be fetched ({getattr(error, 'reason', error)})."
    return ""


def why_unreadable(content: bytes, name: str) -> str:
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        return f"spBLEU is left out: {name} is no SentencePiece model."
    return ""
