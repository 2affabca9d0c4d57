"""What cannot be read, each in one sentence that names the file; and where ollama and LM Studio keep theirs."""

import json

import pytest
from gguf_files import write_gguf

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import find_model


def cut(path, size=None):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3 if size is None else size])


def begins(path, begin):
    path.write_bytes(begin + path.read_bytes()[len(begin) :])


def lies_of_its_type(path):
    """The first tensor's type as 99."""
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8
    data[at : at + 4] = (99).to_bytes(4, "little")
    path.write_bytes(data)


def lies_of_its_length(path):
    """The list of tokens as one of 2⁶⁰."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    data[at : at + 8] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(data)


DAMAGED = "bad.gguf: is cut off or damaged; fetch the file again"  # and not what NumPy says of it
BAD = {
    "endless": ({}, lies_of_its_length, DAMAGED),
    "cut off in the weights": ({}, cut, DAMAGED),
    "cut off in the header": ({}, lambda path: cut(path, 900), DAMAGED),
    "nearly nothing": ({}, lambda path: cut(path, 20), DAMAGED),
    "empty": ({}, lambda path: cut(path, 0), "is no GGUF file"),
    "wrong magic": ({}, lambda path: begins(path, b"GGML"), "is no GGUF file"),
    "big-endian": ({}, lambda path: begins(path, b"GGUF\0\0\0\x03"), "big-endian"),
    "version 1": ({}, lambda path: begins(path, b"GGUF\x01\0\0\0"), "is GGUF in version 1, and"),
    "unknown type": ({}, lies_of_its_type, "unknown type 99"),
    "IQ": ({"kind": "Q8_0", "kinds": {"blk.0.ffn_up.weight": "TQ2_0"}}, None, "blk.0.ffn_up.weight is TQ2_0"),
    "unknown architecture": ({"architecture": "mamba"}, None, "is of the architecture mamba"),
    "mixture": ({"llama.expert_count": 8}, None, "mixture of experts"),
    "no tokenizer": ({"drop": ["tokenizer"]}, None, "holds no tokens of a tokenizer"),
    "no merges": ({"drop": ["merges"]}, None, "holds no merges of a tokenizer"),
    "a LoRA": ({"general.type": "adapter"}, None, "is a LoRA adapter, not a model"),
    "no embedding": ({"drop": ["token_embd.weight"]}, None, "holds no tensor token_embd.weight"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_a_sentence(case, tmp_path):
    settings, spoil, told = BAD[case]
    path = tmp_path / "bad.gguf"
    write_gguf(path, **settings)
    if spoil:
        spoil(path)
    with pytest.raises(ConfigError, match=told) as refused:
        find_model(str(path))
    assert "bad.gguf: " in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


def test_tensors_too_many_or_too_few_are_named(tmp_path):
    from mlx_hybrid.models.base import load_base

    write_gguf(tmp_path / "few.gguf", drop=["blk.1.ffn_up.weight"])
    write_gguf(tmp_path / "many.gguf", extra={"blk.1.ffn_sub_norm.weight": (256,)})
    with pytest.raises(ConfigError, match=r"few.gguf: holds no tensor blk.1.ffn_up.weight"):
        load_base(str(tmp_path / "few.gguf"))
    with pytest.raises(ConfigError, match=r"many.gguf: holds blk.1.ffn_sub_norm.weight, which"):
        load_base(str(tmp_path / "many.gguf"))


def ollama_has(root, name, path, kinds=("model",)):
    """Lay a file out as `ollama pull` does."""
    blob = root / "blobs" / "sha256-00ff"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(path.read_bytes())
    manifest = root / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    kinds = [f"application/vnd.ollama.image.{kind}" for kind in kinds]
    layers = [{"mediaType": kind, "digest": "sha256:00ff"} for kind in kinds]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


def test_ollamas_models_are_found_by_name(tmp_path, monkeypatch):
    path, root = tmp_path / "x.gguf", tmp_path / "models"
    write_gguf(path)
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    library = "registry.ollama.ai/library"
    ollama_has(root, f"{library}/tiny/latest", path, ("license", "model", "template"))
    ollama_has(root, f"{library}/tiny/1b-q4", path)
    ollama_has(root, "registry.ollama.ai/me/mine/latest", path)
    ollama_has(root, "hf.co/me/mine-GGUF/Q4_K_M", path)
    for name in ("tiny", "tiny:latest", "tiny:1b-q4", "me/mine", "hf.co/me/mine-GGUF:Q4_K_M"):
        assert find_model(f"ollama:{name}") == root / "blobs" / "sha256-00ff"
    with pytest.raises(
        ConfigError, match=r"ollama:tiny:7b: ollama has no such model in .*models; `ollama list`"
    ):
        find_model("ollama:tiny:7b")
    ollama_has(root, f"{library}/tuned/latest", path, ("model", "adapter"))
    with pytest.raises(ConfigError, match=r"ollama:tuned: is a model with an adapter"):
        find_model("ollama:tuned")
    (root / "blobs" / "sha256-00ff").unlink()
    with pytest.raises(ConfigError, match=r"ollama:tiny: its weights, .*sha256-00ff, are missing"):
        find_model("ollama:tiny")
    monkeypatch.delenv("OLLAMA_MODELS")
    with pytest.raises(ConfigError, match=r"\.ollama/models"):
        find_model("ollama:tiny")


def test_a_folder_may_hold_one_gguf_model(tmp_path):
    path = tmp_path / "x-Q8_0.gguf"
    write_gguf(path)
    (tmp_path / "mmproj-x.gguf").write_bytes(b"GGUF")
    assert find_model(str(tmp_path)) == path
    write_gguf(tmp_path / "x-Q4_0.gguf", kind="Q4_0")
    several = r"holds several GGUF files; name one of them: x-Q4_0.gguf, x-Q8_0.gguf"
    with pytest.raises(ConfigError, match=several):
        find_model(str(tmp_path))
    with pytest.raises(ConfigError, match=r"absent.gguf: no such file"):
        find_model(str(tmp_path / "absent.gguf"))
