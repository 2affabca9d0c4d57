"""How to export, and which options a form has a use for."""

from dataclasses import dataclass

from mlx_hybrid.errors import ConfigError

RANK, LOSS = 64, 0.05
DENSE = ("peft", "merged", "lora", "gguf-lora")
TAKEN = {
    "base": DENSE,
    "base_id": DENSE,
    "rank": ("lora",),
    "tolerance": ("lora",),
    "requantise": ("merged",),
}
"""The forms that an option has a meaning for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to export. `base` is original, dequantised or None (original where it is at hand); `rank` is that of
    a LoRA (None: the exact one, or RANK where there is none) and `tolerance` the largest relative error of a layer
    (None: LOSS) where that rank truncates it, refused where nothing is lost; `requantise` packs a
    merged model as its base was; `force` writes in spite of faults."""

    base: str | None = None
    base_id: str | None = None
    model: str | None = None
    rank: int | None = None
    tolerance: float | None = None
    requantise: bool = False
    force: bool = False


def refuse_unused(to: str, options: Options) -> None:
    """Raise ConfigError for an option that would change nothing."""
    for field, forms in TAKEN.items():
        if getattr(options, field) != getattr(Options, field) and to not in forms:
            flag = "--" + field.replace("_", "-")
            raise ConfigError(f"{flag} is for --to {' or '.join(forms)}; leave it out with --to {to}.")
    if options.requantise and (options.base or options.base_id):
        raise ConfigError(
            "--requantise packs the base that was trained on; leave out --base and --base-id, or leave out "
            "--requantise and pack the merged original with mlx_lm.convert."
        )
