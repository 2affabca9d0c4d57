"""Measure the bundled base like a base, in one command.

    python tools/base/measure_base.py mlx_hybrid/base [--what bits sib adapt translate] [-o measures.json]

bits: bits per byte on FLORES dev, for each of the 19 languages, of the shipped weights.
sib: SIB-200 test accuracy after full fine-tuning of the dequantised weights with 32 and 160 records a language in 8
languages, the learning rate chosen on dev with the first seed, three seeds; beside the same net from random weights,
tuned alike, and TF-IDF character n-grams with logistic regression.
adapt: bits per byte on FLORES dev before and after 1,000 NTREX lines of Hausa and of Yoruba; beside random weights,
also after 1,500 lines.
translate: chrF++ of greedy translations from English.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_hybrid.models.blas import prefer_openblas

prefer_openblas()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from build_base import flores_bits  # noqa: E402
from corpus import FLORES_CODE, LANGUAGES, LOW_RESOURCE, data_root, flores_lines  # noqa: E402
from torch_tuning import Row, load, nats, option_nats, tune  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from mlx_hybrid.evaluation.benchmarks.tasks import build_records  # noqa: E402
from mlx_hybrid.evaluation.sets import evaluation_set, from_fields, item  # noqa: E402
from mlx_hybrid.exports.weights import ModelWeights, write_dense  # noqa: E402
from mlx_hybrid.models.base import load_base  # noqa: E402
from mlx_hybrid.records.record import Record  # noqa: E402

SIB_LANGUAGES = ["en", "es", "de", "ru", "zh", "sw", "id", "tr"]  # those with a test split at hand
SIB_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
ADAPT_RATES = (3e-4, 1e-3, 3e-3)
ADAPT_FROM = 500  # NTREX lines before it were seen in pretraining
ADAPT_LINES, ADAPT_MORE = 1000, 1497


@dataclass(frozen=True)
class Asked:
    """Prompts, the options of each, and which option is right."""

    prompts: list[list[int]]
    options: list[list[list[int]]]
    right: list[int]

    def rows(self) -> list[Row]:
        """Prompt and right option, to train on."""
        return [
            Row(prompt + options[right], len(prompt))
            for prompt, options, right in zip(self.prompts, self.options, self.right, strict=True)
        ]


def questions(records: Sequence[Record], tokenizer) -> Asked:
    asked = evaluation_set(records)
    items = [item(r, o, tokenizer) for r, o in zip(asked.records, asked.options, strict=True)]
    right = [list(o).index(str(r.label)) for r, o in zip(asked.records, asked.options, strict=True)]
    return Asked([list(i.prompt) for i in items], [i.options for i in items], right)


def accuracy(model, asked: Asked) -> float:
    """Share of records whose right option has the highest summed log-likelihood."""
    losses = option_nats(model, asked.prompts, asked.options)
    return float(np.mean([each.argmin() == right for each, right in zip(losses, asked.right, strict=True)]))


def sib(folder: Path, shots: int, seeds: int, epochs: int) -> dict:
    root, tokenizer = data_root(), PreTrainedTokenizerFast.from_pretrained(folder)
    test = from_fields(build_records("sib200", "test", SIB_LANGUAGES, folder=root), "test")
    dev = from_fields(build_records("sib200", "dev", SIB_LANGUAGES, folder=root), "dev")
    asked_dev, asked_test = (questions(part, tokenizer) for part in (dev, test))
    result: dict[str, list[float]] = {"pretrained": [], "random": [], "tfidf": []}
    chosen = dict.fromkeys(("pretrained", "random"), SIB_RATES)
    for seed in range(seeds):
        drawn = build_records("sib200", "train", SIB_LANGUAGES, folder=root, shots=shots, seed=seed)
        records = from_fields(drawn, "train")
        rows = questions(records, tokenizer).rows()
        result["tfidf"].append(tfidf(records, test))
        for name, rates in chosen.items():
            rate, model = best_tuned(folder, name, rows, asked_dev, rates, epochs, seed)
            chosen[name] = (rate,)
            result[name].append(accuracy(model, asked_test))
        print(shots, seed, {k: round(v[-1], 3) for k, v in result.items()}, chosen, flush=True)
    means = {name: {"mean": float(np.mean(v)), "seeds": v} for name, v in result.items()}
    return means | {"rates": {name: rate[0] for name, rate in chosen.items()}}


def best_tuned(folder, name, rows, dev, rates, epochs, seed):
    """(rate, model) with the highest accuracy on dev after tuning on `rows`."""
    best = (-1.0, 0.0, None)
    for rate in rates:
        model = load(folder, random_weights=name == "random", seed=seed)
        tune(model, rows, rate=rate, epochs=epochs, seed=seed)
        reached = accuracy(model, dev) if len(rates) > 1 else 0.0
        print(f"  {name} {rate:g}: dev {reached:.3f}", flush=True)
        best = max(best, (reached, rate, model), key=lambda tried: tried[0])
    return best[1:]


def tfidf(rows: Sequence[Record], test: Sequence[Record]) -> float:
    """Character 1–4-grams, all languages together, logistic regression; C by 3-fold cross-validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline

    text = lambda record: record.prompt()  # noqa: E731
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, max_features=60_000),
        LogisticRegressionCV(Cs=[1, 10, 100], cv=3, max_iter=300),
    )
    model.fit([text(r) for r in rows], [r.label for r in rows])
    return float(model.score([text(r) for r in test], [r.label for r in test]))


def text_rows(texts: Sequence[str], tokenizer) -> list[Row]:
    return [Row([1, *tokenizer.encode(text, add_special_tokens=False)], 1) for text in texts]


def bits(model, texts: Sequence[str], tokenizer) -> float:
    """Bits per byte, each text after `<s>`."""
    return float(nats(model, text_rows(texts, tokenizer)).sum() / math.log(2)) / sum(
        len(text.encode()) for text in texts
    )


def adapt(folder: Path, language: str, epochs: int) -> dict:
    """FLORES bits per byte before and after NTREX lines, from the base and from random weights.

    The rate is chosen on 200 sentences of FLORES, and 300 others are reported.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    path = data_root() / "ntrex128" / f"{FLORES_CODE[language]}.txt"
    lines = path.read_text(encoding="utf-8").splitlines()[ADAPT_FROM:]
    flores = flores_lines(data_root(), language)
    test, dev = flores[:300], flores[300:500]
    result = {"before": bits(load(folder, random_weights=False, seed=0), test, tokenizer)}
    for name, count in (("pretrained", ADAPT_LINES), ("random", ADAPT_LINES), ("random", ADAPT_MORE)):
        after = {}
        for rate in ADAPT_RATES:
            model = load(folder, random_weights=name == "random", seed=0)
            tune(model, text_rows(lines[:count], tokenizer), rate=rate, epochs=epochs, seed=0)
            after[rate] = [bits(model, part, tokenizer) for part in (dev, test)]
        result[f"{name}, {count} lines"] = min(after.values())[1]
        print(language, name, count, {rate: round(pair[1], 3) for rate, pair in after.items()}, flush=True)
    return result


def translate(folder: Path, language: str, lines: int) -> float:
    """chrF++ of greedy translations of FLORES dev from English."""
    import sacrebleu
    from mlx_lm import batch_generate

    base = load_base(str(folder))
    rows = from_fields(build_records("flores", "test", [language], folder=data_root(), shots=lines), "flores")
    test = evaluation_set([r for r in rows if r.language == FLORES_CODE[language]])
    prompts = [
        base.tokenizer.apply_chat_template(r.turns()[:-1], add_generation_prompt=True) for r in test.records
    ]
    texts = batch_generate(base.model, base.tokenizer, prompts, max_tokens=96, verbose=False).texts
    return sacrebleu.corpus_chrf(texts, [[r.completion() for r in test.records]], word_order=2).score


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", nargs="*", default=["bits", "sib", "adapt", "translate"])
    parser.add_argument("--shots", type=int, nargs="*", default=[32, 160])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lines", type=int, default=997)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    folder, result = arguments.folder, {}
    if "bits" in arguments.what:
        base = load_base(str(folder))
        result["bits_per_byte"] = flores_bits(base.model, base.tokenizer, arguments.lines, LANGUAGES)
        result["mean_of_16"] = math.fsum(
            v for k, v in result["bits_per_byte"].items() if k not in LOW_RESOURCE
        ) / (len(LANGUAGES) - len(LOW_RESOURCE))
    with tempfile.TemporaryDirectory() as temporary:
        dense = Path(temporary) / "dense"
        dense.mkdir()
        write_dense(ModelWeights(folder), dense, mx.float32)
        if "sib" in arguments.what:
            result["sib200"] = {
                shots: sib(dense, shots, arguments.seeds, arguments.epochs) for shots in arguments.shots
            }
        if "adapt" in arguments.what:
            result["adapt"] = {
                language: adapt(dense, language, arguments.epochs) for language in ("ha", "yo")
            }
    if "translate" in arguments.what:
        result["chrf"] = {language: translate(folder, language, 100) for language in ("es", "de", "ru", "sw")}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
