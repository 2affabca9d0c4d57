"""Measure the bundled base like a base, in one command.

    python tools/measure_base.py mlx_hybrid/base [--what bits sib adapt translate] [-o measures.json]

bits: bits per byte on FLORES dev, for each of the 19 languages, of the shipped weights.
sib: SIB-200 test accuracy after full fine-tuning with 32 and 160 records a language in 8 languages, the learning rate
chosen on dev, mean of three seeds; beside the same net from random weights and TF-IDF character n-grams with logistic
regression.
adapt: bits per byte on FLORES dev before and after 1,000 NTREX lines of Hausa and of Yoruba; beside random weights.
translate: chrF++ of greedy translations from English.
"""

import argparse
import json
import math
from pathlib import Path

from mlx_hybrid.blas import prefer_openblas

prefer_openblas()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from build_base import flores_bits  # noqa: E402
from corpus import FLORES_CODE, LANGUAGES, data_root, flores_lines  # noqa: E402

from mlx_hybrid.adapters.attach import attach  # noqa: E402
from mlx_hybrid.base_model import load_base  # noqa: E402
from mlx_hybrid.config import AdapterConfig, TrainConfig  # noqa: E402
from mlx_hybrid.evaluation.examples import evaluation_set, from_fields  # noqa: E402
from mlx_hybrid.evaluation.held_out import make_questions, score  # noqa: E402
from mlx_hybrid.evaluation.scoring import bits_per_byte, sequence_nll  # noqa: E402
from mlx_hybrid.evaluation.tasks import build_records  # noqa: E402
from mlx_hybrid.training.examples import Example, make_examples  # noqa: E402
from mlx_hybrid.training.loop import Progress, train  # noqa: E402
from mlx_hybrid.training.optimizer import BranchOptimizer  # noqa: E402

SIB_LANGUAGES = ["en", "es", "de", "ru", "zh", "sw", "id", "tr"]  # those with a test split here
LOW_RATES = (3e-4, 1e-3)
ADAPT_LINES = 1000
ADAPT_FROM = 500  # NTREX lines before it were seen in pretraining


def fresh(folder: Path, *, random_weights: bool, seed: int):
    """The base dequantised, ready for full fine-tuning; or the same net from random weights."""
    base = load_base(str(folder))
    attach(base.model, AdapterConfig(orthogonal="none", rank=0, start="zeros"), method="full")
    if random_weights:
        rng = np.random.default_rng(seed)
        for name, value in flat(base.model):
            if value.ndim == 2:
                drawn = rng.normal(scale=0.02, size=value.shape).astype(np.float32)
            else:
                drawn = np.ones(value.shape, np.float32)
            set_leaf(base.model, name, mx.array(drawn))
    return base


def flat(model):
    from mlx.utils import tree_flatten

    return tree_flatten(model.trainable_parameters())


def set_leaf(model, name: str, value: mx.array) -> None:
    from mlx.utils import tree_unflatten

    model.update(tree_unflatten([(name, value)]))


def tune(base, examples: list[Example], *, rate: float, epochs: float, seed: int) -> None:
    """Full fine-tuning of all weights."""
    settings = TrainConfig(
        epochs=epochs, batch_size=16, learning_rate=rate, report_every=1000, save_every=10**9
    )
    optimizer = BranchOptimizer(
        base.model,
        learning_rate=rate,
        orthogonal_learning_rate=rate,
        weight_decay=0.01,
        clip=1.0,
        mixing="off",
    )
    for _ in train(base.model, optimizer, examples, [], settings, seed=seed, progress=Progress()):
        pass


def sib(folder: Path, shots: int, seeds: int, epochs: float) -> dict:
    root = data_root()
    test = from_fields(build_records("sib200", "test", SIB_LANGUAGES, folder=root), "test")
    dev = from_fields(build_records("sib200", "dev", SIB_LANGUAGES, folder=root, shots=24), "dev")
    result: dict[str, list[float]] = {"pretrained": [], "random": [], "tfidf": []}
    for seed in range(seeds):
        rows = from_fields(
            build_records("sib200", "train", SIB_LANGUAGES, folder=root, shots=shots, seed=seed), "train"
        )
        result["tfidf"].append(tfidf(rows, test))
        for name, random_weights in (("pretrained", False), ("random", True)):
            best = max(
                accuracy_after(folder, rows, dev, test, random_weights, rate, epochs, seed)
                for rate in LOW_RATES
            )
            result[name].append(best[1])
        print(shots, seed, {k: round(v[-1], 3) for k, v in result.items()}, flush=True)
    return {name: {"mean": float(np.mean(v)), "seeds": v} for name, v in result.items()}


def accuracy_after(folder, rows, dev, test, random_weights, rate, epochs, seed) -> tuple[float, float]:
    """(dev, test) accuracy after tuning on `rows`."""
    base = fresh(folder, random_weights=random_weights, seed=seed)
    examples, _ = make_examples(rows, base.tokenizer, max_tokens=512, too_long="truncate")
    tune(base, examples, rate=rate, epochs=epochs, seed=seed)
    return tuple(
        float(score(base.model, [], make_questions(part, rows, base.tokenizer)).correct.mean())
        for part in (dev, test)
    )


def tfidf(rows, test) -> float:
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


def adapt(folder: Path, language: str, lines: int) -> dict:
    """FLORES bits per byte before and after `lines` of NTREX, from the base and from random weights."""
    path = data_root() / "ntrex128" / f"{FLORES_CODE[language]}.txt"
    texts = path.read_text(encoding="utf-8").splitlines()[ADAPT_FROM : ADAPT_FROM + lines]
    records = from_fields([{"text": text, "language": language} for text in texts], "ntrex")
    result = {}
    for name, random_weights in (("pretrained", False), ("random", True)):
        before, after = [], []
        for rate in LOW_RATES:
            base = fresh(folder, random_weights=random_weights, seed=0)
            before.append(language_bits(base, language))
            examples, _ = make_examples(records, base.tokenizer, max_tokens=512, too_long="truncate")
            tune(base, examples, rate=rate, epochs=3, seed=0)
            after.append(language_bits(base, language))
        result[name] = {"before": before[0], "after": min(after)}
    return result


def language_bits(base, language: str, lines: int = 300) -> float:
    texts = flores_lines(data_root(), language)[:lines]
    ids = [[1, *base.tokenizer.encode(text, add_special_tokens=False)] for text in texts]
    return bits_per_byte(sequence_nll(base.model, ids)[0], [len(text.encode()) for text in texts])


def translate(folder: Path, language: str, lines: int) -> float:
    """chrF++ of greedy translations of FLORES dev from English."""
    import sacrebleu
    from mlx_lm import batch_generate

    base = load_base(str(folder))
    rows = from_fields(build_records("flores", "dev", [language], folder=data_root(), shots=lines), "flores")
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
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--lines", type=int, default=997)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    folder, result = arguments.folder, {}
    if "bits" in arguments.what:
        base = load_base(str(folder))
        result["bits_per_byte"] = flores_bits(base.model, base.tokenizer, arguments.lines, LANGUAGES)
        result["mean_of_16"] = math.fsum(
            v for k, v in result["bits_per_byte"].items() if k not in ("yo", "ha", "am")
        ) / (len(LANGUAGES) - 3)
    if "sib" in arguments.what:
        result["sib200"] = {
            shots: sib(folder, shots, arguments.seeds, arguments.epochs) for shots in arguments.shots
        }
    if "adapt" in arguments.what:
        result["adapt"] = {language: adapt(folder, language, ADAPT_LINES) for language in ("ha", "yo")}
    if "translate" in arguments.what:
        result["chrf"] = {language: translate(folder, language, 100) for language in ("es", "de", "ru", "sw")}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
