"""What a name means, a run, an adapter or a model, and that loaded, with the base beside it on the same weights."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters import store
from mlx_hybrid.adapters.attach import hybrid_layers, settle
from mlx_hybrid.adapters.frozen import unpack
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.files import HUB_ID
from mlx_hybrid.models.base import BUNDLED, base_of, fetch, fingerprints, load_base, with_template
from mlx_hybrid.models.gguf.file import OLLAMA, is_gguf_name
from mlx_hybrid.models.keys import context_limit
from mlx_hybrid.models.templates import template_text
from mlx_hybrid.run import LAST, Run, find_run

UNCHECKED = "mlx-lm keeps no fingerprint of the base, so whether this is the one it was trained on could not be checked"
NO_GAIN = "It does not beat what its run began with on the validation records."


@dataclass(eq=False)
class Pair:
    """A model ready to run."""

    model: Any
    tokenizer: Any
    name: str
    identity: dict
    source: str  # what `load_base` was asked for
    modules: int = 0  # adapted layers
    change: float = 0.0  # max |Δ logit| on a fixed probe
    adapter: Path | None = None  # its folder
    stock: bool = False  # whether mlx-lm wrote it
    context: int = 0  # the most tokens of prompt and answer together

    def __post_init__(self) -> None:
        self.context = self.context or context_limit(self.model, self.tokenizer)

    @property
    def adapted(self) -> bool:
        return self.modules > 0

    @property
    def base_name(self) -> str:
        return self.identity["id"]

    @cached_property
    def base(self) -> Any:
        """The model without the adapter, itself where none is on; the weights are shared, but for full fine-tuning."""
        if not (layers := hybrid_layers(self.model).values()):
            return load_base(self.source).model if self.modules else self.model
        parts = (part for _, m in self.model.named_modules() for part in (*m.values(), *vars(m).values()))
        shared = {id(part): part for part in parts if not isinstance(part, nn.Module | list | tuple | dict)}
        return copy.deepcopy(self.model, shared | {id(layer): layer.linear for layer in layers})

    def describe(self) -> str:
        if not self.adapted:
            return f"{self.name}: no adapter. Context: {self.context:,} tokens."
        line = f"{self.name}: adapter on {self.modules} modules, logits change by up to {self.change:.3g}."
        line += f" {UNCHECKED}." if self.stock else ""
        line += f" {NO_GAIN}" if self.adapter and gains_nothing(self.adapter) else ""
        return f"{line} Base: {self.base_name}. Context: {self.context:,} tokens."


def gains_nothing(adapter: Path) -> bool:
    """Whether the run of an adapter says that it does not beat what it began with."""
    run = Run(adapter.resolve().parent)
    return (run.path / "run.json").is_file() and run.info().get("beats_base") is False


def run_named(name: str, base: str | None = None) -> Run | None:
    """The run that a name means, its base at `base`; None for an adapter or a model. Raises ConfigError as find_run."""
    folder = Path(name)
    bare = not (folder.exists() or name == BUNDLED or is_gguf_name(name) or "/" in name)
    return find_run(name, base) if (folder / "run.json").is_file() or name == LAST or bare else None


def adapter_folder(name: str) -> Path | None:
    """The folder of an adapter that a path or a Hub id names, else None. Raises ConfigError for a PEFT adapter."""
    folder = fetch(name) if HUB_ID.fullmatch(name) and not Path(name).exists() else Path(name)
    if not (folder / store.CONFIG_FILE).is_file():
        return None
    if (folder / "adapter_model.safetensors").is_file() and not (folder / store.WEIGHTS_FILE).is_file():
        raise ConfigError(f"{name}: is a PEFT adapter; `mlx-hybrid import {folder}` brings it in.")
    return folder


def find_adapter(name: str, base: str | None = None) -> tuple[Path, str | None]:
    """The adapter's folder, and `base`, else what its run's config names. Raises ConfigError for a name without one."""
    if not (run := run_named(name, base)) and (adapter := adapter_folder(name)):
        return adapter, base
    if not run and (Path(name).exists() or is_gguf_name(name)):
        raise ConfigError(f"{name}: has no adapter; train one with `mlx-hybrid finetune --model {name}`.")
    run = run or find_run(name, base)
    run.check_adapter()
    return run.adapter, run_base(run, "say with --model")


def run_base(run: Run, way: str = "say with --base-model") -> str:
    """The base of a run. Raises ConfigError, with the `way` out, where it is a local one that has moved."""
    model, own = run.config_here().model.name, run.info().get("base", {}).get("id")
    here = run.base or model == BUNDLED or model.startswith(OLLAMA) or Path(model).expanduser().exists()
    if not here and ("/" not in model or own not in (None, model)):  # else a Hub id
        raise ConfigError(f"{run.path}: its base, {model}, is not there from here; {way} where it is.")
    return model


def own_name(folder: Path, asked_for: str) -> str:
    """What the run of an adapter is called, whatever it was asked for by; the adapter's own name outside a run."""
    run = folder.resolve().parent
    return run.name if (run / "run.json").is_file() else Path(asked_for).name or folder.resolve().name


def load_any(name: str, *, base_name: str | None = None) -> Pair:
    """A run (path, name, or `last`), an adapter (folder or Hub id) on its base or on `base_name`, or a plain model.
    Raises ConfigError for what cannot be found, and for a `base_name` beside a plain model."""
    if run := run_named(name, base_name):
        return load_run(run)
    if adapter := adapter_folder(name):
        return load_adapted(adapter, base_name, name=own_name(adapter, name))
    if base_name:
        raise ConfigError(f"{name}: is a model, not an adapter, so --base-model has no place.")
    base = load_base(name)
    return Pair(base.model, base.tokenizer, name, base.identity, name)


def open_pair(
    name: str,
    *,
    context: int | None = None,
    base_name: str | None = None,
    template: str | None = None,
    compact: bool = False,
) -> Pair:
    """As `load_any`, ready to answer; `compact`, a GGUF file in the least memory. A context too long is refused too."""
    pair = load_any(name, base_name=base_name)
    if template:
        pair.tokenizer.use_template(template_text(template))
    if not (compact and hasattr(pair.model, "weight_of")):
        unpack(pair.model)
    mx.eval(settle(pair.model))
    if context is not None and not 16 <= context <= pair.context:
        raise ConfigError(f"--context: {context}, but this model takes 16 to {pair.context} tokens.")
    pair.context = context or pair.context
    return pair


def load_run(run: Run, *, tokenizer: Any = None) -> Pair:
    """The best adapter of a run on its base, with the base's `tokenizer` where it was read already."""
    run.check_adapter()
    return load_adapted(run.adapter, run_base(run), name=run.name, tokenizer=tokenizer)


def load_adapted(directory: Path, base_name: str | None, *, name: str, tokenizer: Any = None) -> Pair:
    """An adapter on its base. Raises ConfigError for another base or none, MlxHybridError if no logit changes."""
    info = store.read_adapter_config(directory)
    source = base_of(name, info.base["id"], base_name, "--base-model")
    base = load_base(source, tokenizer=tokenizer)
    info.check_base(fingerprints(base.path), base.path, directory)
    plain = store.probe_logits(base.model)
    store.load_adapter(base.model, directory)
    with_template(base.tokenizer, info.conversations, base.tokenizer.date)
    change = mx.max(mx.abs(store.probe_logits(base.model) - plain)).item()
    if change == 0.0:
        told = "the adapter changes no logit, so it was never trained or does not apply."
        raise MlxHybridError(f"{directory}: {told}")
    modules = len(hybrid_layers(base.model)) or 1  # the whole model, of full
    mx.clear_cache()
    loaded = (base.model, base.tokenizer, name, base.identity, source)
    return Pair(*loaded, modules, change, directory, info.stock)
