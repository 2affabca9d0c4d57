"""Turn a pretrained Hugging Face folder into the bundled base: MLX weights, quantised, with its tokenizer.

    python tools/base/build_base.py ~/base-annealed --tokenizer mlx_hybrid/base -o mlx_hybrid/base --bits 4

Prints the bits per byte on FLORES dev before and after quantising.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

from mlx_hybrid.models.blas import prefer_openblas

prefer_openblas()

import mlx.core as mx  # noqa: E402
from corpus import LANGUAGES, LOW_RESOURCE, data_root, flores_lines  # noqa: E402
from mlx_lm.utils import load_model, quantize_model, save_model  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from mlx_hybrid.adapters.attach import dequantise  # noqa: E402
from mlx_hybrid.evaluation.scoring import sequence_nll  # noqa: E402

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 3}


def flores_bits(model, tokenizer, lines: int, languages: list[str]) -> dict[str, float]:
    """Bits per byte of FLORES dev sentences, each after `<s>`."""
    result = {}
    for language in languages:
        texts = flores_lines(data_root(), language)[:lines]
        ids = [[1, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
        nll = sequence_nll(model, ids)[0]
        result[language] = float(nll.sum()) / math.log(2) / sum(len(text.encode()) for text in texts)
    return result


def write_config(folder: Path, config: dict) -> None:
    keep = {k: v for k, v in config.items() if k not in ("transformers_version", "dtype", "torch_dtype")}
    keep |= {"torch_dtype": "float16", **GENERATION}
    (folder / "config.json").write_text(json.dumps(dict(sorted(keep.items())), indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--embedding-bits", type=int, default=0, help="other width for the embedding")
    parser.add_argument("--lines", type=int, default=200, help="FLORES lines measured")
    arguments = parser.parse_args()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer)
    languages = [language for language in LANGUAGES if language not in LOW_RESOURCE]
    model, config = load_model(arguments.source)
    model.set_dtype(mx.float32)
    before = flores_bits(model, tokenizer, arguments.lines, languages)
    model.set_dtype(mx.float16)
    kept = {"group_size": arguments.group_size, "bits": arguments.embedding_bits or arguments.bits}
    predicate = lambda path, module: kept if "embed" in path else hasattr(module, "to_quantized")  # noqa: E731
    model, config = quantize_model(
        model, config, arguments.group_size, arguments.bits, quant_predicate=predicate
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_model(arguments.output, model, donate_model=False)
    write_config(arguments.output, config)
    for name in TOKENIZER_FILES:
        if arguments.tokenizer.resolve() != arguments.output.resolve():
            shutil.copy(arguments.tokenizer / name, arguments.output / name)
    dequantise(model)
    model.set_dtype(mx.float32)
    after = flores_bits(model, tokenizer, arguments.lines, languages)
    for language in languages:
        print(f"{language}  {before[language]:.3f}  {after[language]:.3f}")
    mean = [math.fsum(x.values()) / len(x) for x in (before, after)]
    print(
        f"mean over {len(languages)} languages: {mean[0]:.3f} float32, {mean[1]:.3f} at {arguments.bits} bits"
    )


if __name__ == "__main__":
    main()
