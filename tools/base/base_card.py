"""Write the bundled base's model card from its measures and the text's manifest.

python tools/base/measure_base.py mlx_hybrid/base -o measures.json
python tools/base/base_card.py measures.json --tokens 8.2 --command "…" -o mlx_hybrid/base/README.md
"""

import argparse
import csv
import json
from pathlib import Path

from corpus import data_root

# ruff: noqa: E501
HEAD = """---
license: cc-by-sa-4.0
language: [en, es, fr, de, ru, ar, hi, zh, sw, tr, vi, th, bg, el, ur, id, yo, ha, am]
library_name: mlx
pipeline_tag: text-generation
---

# The bundled base

A small multilingual causal language model that comes with mlx-hybrid, so that everything can be tried, tested and measured without a
download. It is a base to fine-tune, not an assistant: it writes short phrases in the language asked, and knows next to nothing.

{shape}

Weights, tokenizer and samples are licensed under CC BY-SA 4.0 (LICENSE); the code around them under Apache-2.0. For this model the
dequantised weights are the original: there is no 16-bit copy.

## Measures

Bits per byte of the shipped weights on FLORES-200 dev (the first 100 sentences of each language), each after `<s>`. Lower is better; `xz`
needs about 3.0.

| language | bits per byte |
|---|---|
{bits}

Mean over the 16 languages with more than 1 MB of text: **{mean:.2f}**. Yoruba, Hausa and Amharic are nearly unseen on purpose: they are the
languages to adapt to. `python tools/base/measure_base.py mlx_hybrid/base --what bits --lines 100` repeats these measures.

{more}
## Training

About {tokens} million tokens, on two cores of an AMD EPYC, in PyTorch (bf16 autocast), Muon for matrices and AdamW for the rest; then
annealed to a rate of zero on a mix with more translations and instructions, and quantised.

```
{command}
```

The text is public and allows redistribution with attribution and share-alike. Translations are TICO-19 and NTREX-128 lines 1–500 (not
for Yoruba, Hausa, Amharic). Instructions, the word list and the topic names in `tools/base/lexicon/` were written for this project. XNLI, FLORES and
SIB-200 never entered.

| language | source | repository | licence | lines | bytes |
|---|---|---|---|---|---|
{sources}
| all | tico19 | tico-19/tico-19.github.io | CC0-1.0 | | |
| all | ntrex128, lines 1–500 | MicrosoftTranslator/NTREX | CC BY-SA 4.0 | | |

## Limits

It was trained for hours, not months, on a few megabytes a language: facts, reasoning and most grammar are beyond it. The text holds
19th-century novels, a Bible translation, government news and social media, with the views of their authors.
"""


TAUGHT = """Part of this was learnt before: the instructions ask for the topic of sentences, all seven of SIB-200's among their 23, with labels
that follow from the project's word list. Read it as what fine-tuning adds to a base that knows the task, not as understanding.
"""


def shape(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    bits, head = config["quantization"]["bits"], config["quantization"]["model.embed_tokens"]["bits"]
    return (
        f"{config['model_type'].capitalize()} architecture in Hugging Face layout: {config['hidden_size']} wide, "
        f"{config['num_hidden_layers']} layers, vocabulary {config['vocab_size']:,}\n(SentencePiece unigram with byte "
        f"fallback), tied head, context 1,024 tokens, {bits}-bit weights in groups of {config['quantization']['group_size']}, "
        f"the embedding at {head} bits."
    )


def sources() -> str:
    with (data_root() / "text" / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        keys = ("language", "source", "repository", "licence", "lines", "bytes")
        return "\n".join("| " + " | ".join(row[key] for key in keys) + " |" for row in rows)


def spread(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} – {max(values):.3f})"


def merged(paths: list[Path]) -> dict:
    """The measures of several files as if taken at once."""
    whole: dict = {}
    for path in paths:
        for key, value in json.loads(path.read_text()).items():
            whole[key] = whole.get(key, {}) | value if isinstance(value, dict) else value
    return whole


def more(measures: dict) -> str:
    """The other measures, where they were taken."""
    parts = []
    if "sib200" in measures:
        parts.append(
            "SIB-200 test accuracy after full fine-tuning (8 languages; mean of three seeds, lowest – highest):\n"
        )
        parts.append("| records a language | this base | random weights | TF-IDF |\n|---|---|---|---|")
        for shots, row in sorted(measures["sib200"].items(), key=lambda item: int(item[0])):
            cells = " | ".join(spread(row[name]["seeds"]) for name in ("pretrained", "random", "tfidf"))
            parts.append(f"| {shots} | {cells} |")
        parts.append("\n" + TAUGHT)
    for language, row in measures.get("adapt", {}).items():
        after = "; ".join(f"{name} {value:.2f}" for name, value in row.items() if name != "before")
        parts.append(
            f"Bits per byte in `{language}` after NTREX lines: {after}; before, {row['before']:.2f}.\n"
        )
    if "chrf" in measures:
        scores = ", ".join(f"{language} {score:.1f}" for language, score in measures["chrf"].items())
        parts.append(f"chrF++ of greedy translations from English (100 sentences): {scores}.\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measures", type=Path, nargs="+")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    measures = merged(arguments.measures)
    bits = "\n".join(f"| {language} | {value:.3f} |" for language, value in measures["bits_per_byte"].items())
    text = HEAD.format(
        shape=shape(arguments.output.parent), bits=bits, mean=measures["mean_of_16"], more=more(measures),
        tokens=arguments.tokens, command=arguments.command, sources=sources(),
    )  # fmt: skip
    arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
