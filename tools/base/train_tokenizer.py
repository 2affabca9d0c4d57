"""Train the bundled base's tokenizer: SentencePiece unigram with byte fallback over 19 languages.

    python tools/base/train_tokenizer.py -o mlx_hybrid/base

Writes `tokenizer.model` (SentencePiece) and `tokenizer.json` + `tokenizer_config.json` for
PreTrainedTokenizerFast. transformers' LlamaTokenizer would read the unigram model as BPE, so the class is
named in the config; a test holds the two files to the same ids in every language.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import sentencepiece as spm
from corpus import LANGUAGES, data_root, parallel_pairs, temperature_shares, text_lines

UNKNOWN, BEGIN, END, PAD = "<unk>", "<s>", "</s>", "<pad>"
TURNS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('this template knows the roles system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def sample_sentences(root: Path, characters: int, alpha: float, seed: int) -> list[str]:
    """Lines of every language, `characters` in all, shared out by temperature."""
    rng = random.Random(seed)
    lines = {language: text_lines(root, language) for language in LANGUAGES}
    for language, _, target in parallel_pairs(root):
        lines[language].append(target)
    sizes = {language: sum(map(len, texts)) for language, texts in lines.items()}
    shares = temperature_shares(sizes, alpha)
    chosen = []
    for language in LANGUAGES:
        budget = int(shares[language] * characters)
        texts = lines[language]
        rng.shuffle(texts)
        while budget > 0:  # small languages are repeated, at most eightfold
            for text in texts:
                chosen.append(text)
                budget -= len(text)
                if budget <= 0:
                    break
            budget = min(budget, 7 * sizes[language]) if budget > 0 else 0
            if sizes[language] * 8 < shares[language] * characters:
                break
    return chosen


def train(sentences: list[str], vocabulary: int, output: Path) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write("\n".join(sentences))
        file.flush()
        spm.SentencePieceTrainer.train(
            input=file.name,
            model_prefix=str(output / "tokenizer"),
            model_type="unigram",
            vocab_size=vocabulary,
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",  # what goes in comes out, to the byte
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,  # a turn's first word has the same pieces wherever it stands
            split_digits=True,
            max_sentence_length=16384,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            pad_piece=PAD,
            control_symbols=TURNS,
            num_threads=2,
            minloglevel=1,
        )
    (output / "tokenizer.vocab").unlink()


def write_fast_tokenizer(model: Path, output: Path, context: int) -> None:
    """The same unigram model as `tokenizer.json`, and its config with the chat template."""
    processor = spm.SentencePieceProcessor(model_file=str(model))
    pieces = [[processor.id_to_piece(i), processor.get_score(i)] for i in range(processor.get_piece_size())]
    special = [UNKNOWN, BEGIN, END, PAD, *TURNS]
    added = [
        {
            "id": processor.piece_to_id(piece), "content": piece, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
        for piece in special
    ]  # fmt: skip
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    begins = {  # every text was pretrained after <s>
        "type": "TemplateProcessing", "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [processor.piece_to_id("<s>")], "tokens": ["<s>"]}},
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": space, "pre_tokenizer": None, "post_processor": begins,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": True},
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context,
        "unk_token": UNKNOWN, "bos_token": BEGIN, "eos_token": "<|end|>", "pad_token": PAD,
        "additional_special_tokens": TURNS, "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    write_json(output / "tokenizer.json", tokenizer)
    write_json(output / "tokenizer_config.json", config)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--characters", type=int, default=24_000_000)
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    sentences = sample_sentences(data_root(), arguments.characters, arguments.alpha, arguments.seed)
    train(sentences, arguments.vocabulary, arguments.output)
    write_fast_tokenizer(arguments.output / "tokenizer.model", arguments.output, arguments.context)


if __name__ == "__main__":
    main()
