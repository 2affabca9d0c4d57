"""The bundled base: its size, its tokenizer against SentencePiece, its template, its card."""

import json
import math
import re
from pathlib import Path

import mlx.core as mx
import pytest
import sentencepiece
from tolerances import LOGITS
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlx_hybrid.exports.weights import ModelWeights, write_dense
from mlx_hybrid.models.base import BUNDLED_FOLDER, load_base

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
LARGEST_MB = 16
LANGUAGES = "en es fr de ru ar hi zh sw tr vi th bg el ur id yo ha am".split()  # noqa: SIM905
CARD_BITS = 0.01  # the card gives three digits, measured on all lines; a test measures fewer languages


@pytest.fixture(scope="module")
def base():
    return load_base("bundled")


@pytest.fixture(scope="module")
def pair():
    """(transformers' tokenizer, SentencePiece's) from the same vocabulary."""
    fast = AutoTokenizer.from_pretrained(BUNDLED_FOLDER)
    return fast, sentencepiece.SentencePieceProcessor(model_file=str(BUNDLED_FOLDER / "tokenizer.model"))


def sample_texts() -> list[str]:
    texts = []
    for path in sorted((BUNDLED_FOLDER / "samples").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                texts += [turn["content"] for turn in json.loads(line)["messages"]]
            except (ValueError, KeyError, TypeError):
                continue  # lines broken on purpose
    return [text for text in texts if isinstance(text, str) and text]


def same_ids(pair, texts: list[str]) -> None:
    """Equal ids, and the text back. Two orders of the same pieces have one score, and the libraries may then choose
    differently (1 of 18,943 FLORES sentences): no more than one text in a hundred may differ, and only so."""
    fast, pieces = pair
    ties = 0
    for text in texts:
        ids, reference = fast.encode(text, add_special_tokens=False), pieces.encode(text)
        assert sorted(ids) == sorted(reference), text
        ties += ids != reference
        assert fast.decode(ids) == text
    assert ties <= len(texts) / 100


def test_the_tokenizer_is_the_unigram_model_and_no_bpe(pair):
    fast, _ = pair
    assert isinstance(fast, PreTrainedTokenizerFast)
    assert json.loads((BUNDLED_FOLDER / "tokenizer.json").read_text())["model"]["type"] == "Unigram"


def test_ids_equal_sentencepiece_on_the_samples(pair):
    same_ids(pair, sample_texts())


@pytest.mark.parametrize(
    "text", ["", " ", "  two  spaces ", "tab\tand\nline", "🦊 ‏مرحبا", "é vs é", "㋿\u2028x"]
)
def test_any_text_comes_back_to_the_byte(pair, text):
    same_ids(pair, [text])


@pytest.mark.data
@pytest.mark.parametrize("language", LANGUAGES)
def test_ids_equal_sentencepiece_in_every_language(language, pair, data_root, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "tools" / "base"))
    from corpus import flores_lines

    same_ids(pair, flores_lines(data_root, language)[:300])


def test_the_template_marks_turns_and_ends_them(base):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    text = base.tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<s><|user|>Hello<|end|><|assistant|>Hi<|end|>"
    prompt = base.tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    assert base.tokenizer.encode("<|end|>", add_special_tokens=False)[0] in base.tokenizer.eos_token_ids


def test_it_is_small_quantised_and_alone(base):
    files = [path for path in BUNDLED_FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST_MB * 1e6
    assert len(list(BUNDLED_FOLDER.glob("*.safetensors"))) == 1
    config = json.loads((BUNDLED_FOLDER / "config.json").read_text())
    assert config["quantization"]["bits"] in (4, 8)
    assert all(config[key] % 64 == 0 for key in ("hidden_size", "intermediate_size"))


def test_the_card_names_data_licences_and_command():
    card = (BUNDLED_FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ("CC BY-SA 4.0", "tools/base/pretrain_base.py", "bits per byte", "commonvoice", "never"):
        assert words in card
    assert "Attribution-ShareAlike 4.0 International" in (BUNDLED_FOLDER / "LICENSE").read_text()
    assert "CC BY-SA" in (PROJECT / "NOTICE").read_text() or "ShareAlike" in (PROJECT / "NOTICE").read_text()


def transformers_bits(folder: Path, tokenizer, lines: list[str]) -> float:
    """Bits per byte of lines, each after `<s>`, by transformers on a folder of dense weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model, nats = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), 0.0
    with torch.no_grad():
        for line in lines:
            ids = torch.tensor([[1, *tokenizer.encode(line, add_special_tokens=False)]])
            nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    return nats / math.log(2) / sum(len(line.encode()) for line in lines)


@pytest.mark.data
@pytest.mark.peft
def test_the_card_s_bits_per_byte_are_those_of_the_shipped_weights(base, data_root, tmp_path, monkeypatch):
    """By another library, and on two lines by the tool that the card was made with."""
    monkeypatch.syspath_prepend(str(PROJECT / "tools" / "base"))
    from build_base import flores_bits
    from corpus import flores_lines

    card = (BUNDLED_FOLDER / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| (\w\w) \| ([\d.]+) \|", card, flags=re.MULTILINE))
    assert set(stated) == set(LANGUAGES)
    write_dense(ModelWeights(BUNDLED_FOLDER), tmp_path, mx.float32)
    lines = flores_lines(data_root, "sw")[:100]
    assert abs(float(stated["sw"]) - transformers_bits(tmp_path, base.tokenizer, lines)) < CARD_BITS
    ours = flores_bits(base.model, base.tokenizer, 2, ["sw"])["sw"]
    assert ours == pytest.approx(transformers_bits(tmp_path, base.tokenizer, lines[:2]), rel=LOGITS)
