"""A base with its adapter on, and the proof that the adapter does something."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.models.base import BUNDLED, base_of, fetch, fingerprints, is_hub_id, load_base, with_template
from mlx_hybrid.models.gguf.file import OLLAMA, is_gguf_name
from mlx_hybrid.run import LAST, Run, find_run

UNCHECKED = "mlx-lm keeps no fingerprint of the base, so whether this is the one it was trained on could not be checked"
PEFT_WEIGHTS = "adapter_model.safetensors"


@dataclass
class Loaded:
    """A model ready to run: `modules` counts adapted layers, `change` is max |Δ logit| on a fixed probe, `source` what
    `load_base` was asked for, `adapter` the adapter's folder, `stock` that mlx-lm wrote it."""

    model: Any
    tokenizer: Any
    name: str
    identity: dict
    source: str
    modules: int = 0
    change: float = 0.0
    adapter: Path | None = None
    stock: bool = False

    def describe(self) -> str:
        """One line that says what is on."""
        if not self.modules:
            return f"{self.name}: no adapter"
        line = f"{self.name}: adapter on {self.modules} modules, logits change by up to {self.change:.3g}"
        return f"{line}. {UNCHECKED}" if self.stock else line


def run_named(name: str) -> Run | None:
    """The run that a name means; None where it means an adapter or a model.

    Raises ConfigError for a run that is not here: a name that is no folder, no Hub id and not `bundled` is a run's.
    """
    folder = Path(name)
    model = folder.exists() or name == BUNDLED or is_gguf_name(name)
    bare = not model and "/" not in name
    return find_run(name) if (folder / "run.json").is_file() or name == LAST or bare else None


def load_any(name: str, *, base_name: str | None = None) -> Loaded:
    """A run (path, name, or `last`), an adapter (folder or Hub id) on its base or on `base_name`, or a plain model.

    Raises ConfigError for what cannot be found, and for a `base_name` beside a plain model.
    """
    if run := run_named(name):
        return load_run(run, base_name=base_name)
    if adapter := adapter_folder(name):
        return load_adapted(adapter, base_name, name=own_name(adapter, name))
    if base_name:
        raise ConfigError(f"{name}: is a model, not an adapter, so --base-model has no place.")
    base = load_base(name)
    return Loaded(base.model, base.tokenizer, name, base.identity, name)


def load_run(run: Run, *, base_name: str | None = None, tokenizer: Any = None) -> Loaded:
    """The best adapter of a run on its base, with the base's `tokenizer` where it was read already."""
    run.check_adapter()
    model = run.config_here().model.name
    local = "/" not in model or run.info().get("base", {}).get("id", model) != model
    named = model == BUNDLED or model.startswith(OLLAMA)
    if not base_name and local and not named and not Path(model).expanduser().exists():
        told = f"its base, {model}, is not there from here; say with --base-model where it is."
        raise ConfigError(f"{run.path}: {told}")
    return load_adapted(run.adapter, base_name or model, name=run.name, tokenizer=tokenizer)


def load_adapted(directory: Path, base_name: str | None, *, name: str, tokenizer: Any = None) -> Loaded:
    """An adapter folder on its base.

    Raises ConfigError for a base that is not here or another, MlxHybridError if no logit changes.
    """
    import mlx.core as mx

    from mlx_hybrid.adapters.attach import hybrid_layers, trainable_count
    from mlx_hybrid.adapters.store import load_adapter, logit_change, probe_logits, read_adapter_config

    info = read_adapter_config(directory)
    source = base_of(name, info.base["id"], base_name, "--base-model")
    base = load_base(source, tokenizer=tokenizer)
    info.check_base(fingerprints(base.path), base.path, directory)
    plain = probe_logits(base.model)
    load_adapter(base.model, directory)
    with_template(base.tokenizer, info.conversations, base.tokenizer.date)
    change = logit_change(plain, base.model)
    if change == 0.0:
        told = "the adapter changes no logit, so it was never trained or does not apply."
        raise MlxHybridError(f"{directory}: {told}")
    modules = len(hybrid_layers(base.model)) or int(trainable_count(base.model) > 0 and info.adapter.full)
    mx.clear_cache()
    on = (modules, change, directory, info.stock)
    return Loaded(base.model, base.tokenizer, name, base.identity, source, *on)


def adapter_folder(name: str) -> Path | None:
    """The folder of the adapter that a path or a Hub id names; None where it names something else.

    Raises ConfigError for an id that cannot be had, and for a PEFT adapter, which `import` brings in.
    """
    from mlx_hybrid.adapters.store import CONFIG_FILE, WEIGHTS_FILE

    folder = Path(name)
    if not folder.exists() and is_hub_id(name):
        folder = fetch(name)
    if not (folder / CONFIG_FILE).is_file():
        return None
    if (folder / PEFT_WEIGHTS).is_file() and not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"{name}: is a PEFT adapter; `mlx-hybrid import {folder}` brings it in.")
    return folder


def own_name(folder: Path, asked_for: str) -> str:
    """What the run of an adapter is called, whatever it was asked for by; the adapter's own name outside a run."""
    run = folder.resolve().parent
    return run.name if (run / "run.json").is_file() else Path(asked_for).name or folder.resolve().name


def find_adapter(name: str) -> tuple[Path, str | None]:
    """The adapter's folder, and the base that the run's config names. Raises ConfigError for a name without one."""
    run = run_named(name)
    if run is None and (adapter := adapter_folder(name)):
        return adapter, None
    run = run or find_run(name)
    run.check_adapter()
    return run.adapter, run.config_here().model.name
