"""Find and load a base model: the bundled one, a folder, a GGUF file, or a Hub id."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import mlx.core as mx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.frozen import on_cpu, use_fast_products
from mlx_hybrid.config import BUNDLED, ModelConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import HUB_ID, first_line, hub_endpoint, hub_reason, read_json, write_json
from mlx_hybrid.models.activations import use_fast_activations
from mlx_hybrid.models.gguf.config import config_of, readable
from mlx_hybrid.models.gguf.file import OLLAMA, is_gguf_name, ollama_file, only_gguf, open_gguf
from mlx_hybrid.models.gguf.load import build
from mlx_hybrid.models.gguf.tokenizer import write_tokenizer
from mlx_hybrid.models.keys import check_keys, forward_keys, mended
from mlx_hybrid.models.templates import template_text, unnamed_end

BUNDLED_FOLDER = Path(__file__).parents[1] / "base"
FILES = ["*.json", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja", "*.py"]
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json", "*.py")


@dataclass(frozen=True)
class BaseModel:
    model: Any
    tokenizer: Any
    path: Path
    identity: dict


def load_base(name: str, *, tokenizer: Any = None) -> BaseModel:
    """Load a model that mlx-lm knows, in float32 on the CPU, with a `tokenizer` that was read already or its own.
    Raises ConfigError for one that is not to be had, is not whole, or has weights that are no numbers."""
    folder = find_model(name)
    tokenizer = tokenizer or read_tokenizer(name, folder)
    model, _ = load_weights(folder, name)
    use_fast_products(model)
    model.eval()
    for weights, leaf in tree_flatten(model.parameters()):
        if mx.issubdtype(leaf.dtype, mx.floating) and not mx.all(mx.isfinite(leaf)).item():
            raise ConfigError(f"{name}: the weights {weights} hold NaN or inf, so nothing can be computed.")
    return BaseModel(model, tokenizer, folder, identity(name, folder))


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Raise ConfigError that names the model for what mlx-lm and transformers raise of files that they cannot read."""
    try:
        yield
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ConfigError(f"{name}: cannot be loaded ({first_line(error)}).") from error


def load_weights(place: Path, name: str, *, lazy: bool = False) -> tuple[Any, dict]:
    """The model in a folder or a GGUF file, and its config; `lazy`, without reading a weight."""
    from mlx_lm.utils import load_model

    use_fast_activations()  # before a model's own functions are compiled with MLX's
    if place.is_file():
        return build(open_gguf(place), lazy=lazy)
    check_keys(own := read_json(place / "config.json"), name)
    with loading(name):
        model, config = load_model(place, lazy=lazy, model_config=mended(own))
    if on_cpu():
        model.set_dtype(mx.float32)
    return model, config


def tokenizer_for(model: ModelConfig, day: date | None = None) -> Any:
    """A model's tokenizer with the template settings of a run, told the date `day`. Raises as `load_base` does."""
    tokenizer = read_tokenizer(model.name)
    written = model.chat_template or ("" if tokenizer.has_chat_template else "plain")
    settings = {"template": model.template, "system": model.system, "chat_template": written}
    return with_template(tokenizer, settings, day)


def with_template(tokenizer: Any, settings: dict[str, Any], day: date | None = None) -> Any:
    """The tokenizer with an adapter's `chat_template`, its `template` options and `system` turn, where it has them."""
    if given := settings.get("chat_template"):
        tokenizer.use_template(template_text(given))
    tokenizer.options = tokenizer.known(settings.get("template", {}))
    tokenizer.system, tokenizer.date = settings.get("system", "keep"), day
    return tokenizer


def read_tokenizer(name: str, folder: Path | None = None) -> Any:
    """A model's tokenizer, in `folder` or found without fetching its weights, which ends answers where the config says,
    or else its template. Raises ConfigError as `load_base` does."""
    folder = folder or find_model(name, weights=False)
    if folder.is_file():
        with tempfile.TemporaryDirectory() as beside:
            write_tokenizer(open_gguf(folder), Path(beside))
            write_json(Path(beside) / "config.json", config_of(folder))
            tokenizer = read_tokenizer(name, Path(beside))
        tokenizer.folder = folder
        return tokenizer
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZERS):
        raise ConfigError(f"{name}: no tokenizer in the folder; it needs tokenizer.json or the like.")
    from mlx_lm.utils import load_tokenizer

    from mlx_hybrid.models.tokenizer import Tokenizer

    with loading(name):
        config = config_of(folder)
        trust = {"trust_remote_code": False}  # without a word, transformers would ask in a terminal
        tokenizer = load_tokenizer(folder, trust, eos_token_ids=config.get("eos_token_id"))
    if end := unnamed_end(tokenizer, folder):
        tokenizer.add_eos_token(end)
    rows = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return Tokenizer(tokenizer, vocabulary=rows, folder=folder)


def find_model(name: str, *, weights: bool = True) -> Path:
    """The folder of a model's files, fetched from the Hub where it is not here, or its GGUF file."""
    if name == BUNDLED:
        return check_folder(BUNDLED_FOLDER, "the bundled base")
    if name.startswith(OLLAMA):
        return readable(ollama_file(name), name)
    if not name.strip():
        raise ConfigError("The model's name is empty; give a folder, a Hub id, or bundled.")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return readable(file, name) if (file := only_gguf(folder, name)) else check_folder(folder, name)
    if folder.is_file() or is_gguf_name(name):
        return readable(folder, name)
    if not HUB_ID.fullmatch(name):
        raise ConfigError(f"{name}: no such folder or ollama:NAME, and not a Hub id of the form owner/name.")
    return check_folder(fetch(name), name) if weights else fetch(name, weights=False)


def check_local(name: str) -> None:
    """Refuse, before any work, what can be no model; whether a Hub id is one shows when it is fetched."""
    if not HUB_ID.fullmatch(name) or Path(name).exists():
        find_model(name)


def base_of(name: str, named: str, given: str | None, option: str) -> str:
    """The base `given`, else the one `named` by the adapter. Raises ConfigError for a local one that is not here."""
    if not given and not named:
        raise ConfigError(f"{name}: does not say which base it was trained on; name it with {option}.")
    if not given and not is_named(named) and not Path(named).expanduser().exists():
        kind = "file" if is_gguf_name(named) else "folder"
        raise ConfigError(f"{name}: was trained on the local {kind} {named}; say with {option} where it is.")
    return given or named


def is_named(name: str) -> bool:
    """Whether `name` says the same from every folder, as the bundled model, ollama's and Hub ids do."""
    hub_id = HUB_ID.fullmatch(name) and not Path(name).exists()
    return bool(name == BUNDLED or name.startswith(OLLAMA) or hub_id)


def fetch(repo: str, *, weights: bool = True) -> Path:
    wanted = [*FILES, "*.safetensors"] if weights else FILES
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, endpoint=hub_endpoint()))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        told = f"no such folder here, and not to be had from the Hub ({hub_reason(error)})."
        raise ConfigError(f"{repo}: {told}") from None


def check_folder(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{name}: no config.json there, so it is not a model folder.")
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(f"{name}: no .safetensors weights in the folder; other formats are not read.")
    read_json(folder / "config.json")
    return folder


def identity(name: str, folder: Path) -> dict:
    """What a run records of its base; of a GGUF file, the Hub id of the model that was packed too, if it says so."""
    of_base = {"id": folder.name, "fingerprint": fingerprint(folder)}
    if folder.is_file():
        original, kind = open_gguf(folder).original, config_of(folder)["model_type"]
        of_base |= {"id": name} if name.startswith(OLLAMA) else {}
        return of_base | {"model_type": kind} | ({"original": original} if original else {})
    config, local = read_json(folder / "config.json"), name != BUNDLED and Path(name).exists()
    of_base["id"] = Path(name).resolve().name if local else name
    return of_base | {key: config.get(key) for key in ("quantization", "model_type")}


def fingerprint(folder: Path) -> str:
    """sha256 over the keys of config.json that change the forward pass and, of each weight file, its size, header, and
    first and last 64 KiB; of a GGUF file, the whole of every weight."""
    return fingerprints(folder)[0]


def fingerprints(folder: Path) -> tuple[str, ...]:
    """Those by which an adapter may know this base: older runs kept the bytes of config.json in theirs."""
    if folder.is_file():
        keys = forward_keys(config_of(folder))
        return (hashlib.sha256(f"{keys} {open_gguf(folder).fingerprint()}".encode()).hexdigest(),)
    config, weights = folder / "config.json", b""
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            weights += str(size).encode() + file.read(min(length, 1 << 26)) + file.read(1 << 16)
            file.seek(max(0, size - (1 << 16)))
            weights += file.read()
    written, keys = config.read_bytes(), forward_keys(read_json(config))
    own = written if keys is None else keys.encode()
    return tuple(hashlib.sha256(told + weights).hexdigest() for told in (own, written))
