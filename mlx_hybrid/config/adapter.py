"""The settings of an adapter: its branches, how they start, and what each method's preset makes of them."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_hybrid.config.convert import Bounded, bounded
from mlx_hybrid.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HouseholderConfig(Bounded):
    """A rotation by reflections (HRA, arXiv 2405.17484)."""

    kind: Literal["householder"] = "householder"
    """Which rotation it is."""
    reflections: int = bounded(8, 2, even=True)
    """How many reflections, an even number."""


@dataclass(frozen=True, kw_only=True)
class ButterflyConfig(Bounded):
    """A rotation by butterfly factors of Cayley blocks (BOFT, arXiv 2311.06243)."""

    kind: Literal["butterfly"] = "butterfly"
    """Which rotation it is."""
    block_size: int = bounded(8, 0, even=True)
    """Features rotated together by one factor, an even number; 0 or `auto` picks for each layer."""
    factors: int = bounded(4, 1)
    """How many factors; the dense block is block_size · 2^(factors − 1) and must divide the inputs."""


RotationConfig = HouseholderConfig | ButterflyConfig


@dataclass(frozen=True, kw_only=True)
class LowRankConfig(Bounded):
    """A low-rank update s · x A B (LoRA, arXiv 2106.09685)."""

    rank: int = bounded(16, 1, sane=512)
    """Rank of the update, the columns of A: more can learn more, and takes more memory."""
    alpha: float = bounded(16.0, 1e-6)
    """Scale: s = alpha / √rank with rslora, else alpha / rank."""
    rslora: bool = True
    """Rank-stabilised scale (Kalajdzievski 2023, arXiv 2312.03732)."""
    start: Literal["zeros", "gradient", "lora-ga"] = "zeros"
    """Where the update starts: at zero, with A along the gradient, or as LoRA-GA (docs/method.md)."""
    dropout: float = bounded(0.0, 0, 0.9, sane=0.5)
    """Dropout on the input of the update."""
    magnitude: bool = False
    """Train each output's magnitude apart (DoRA); a baseline, from zeros and without a rotation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.magnitude and self.start != "zeros":
            told = f"magnitude (DoRA) needs a low-rank branch from zeros, and start is {self.start}."
            raise ConfigError(told)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Bounded):
    """What is trained. Left out, a value comes from the preset that `method` names (docs/method.md)."""

    rotation: HouseholderConfig | ButterflyConfig | None = None
    """The orthogonal branch, which rotates a layer's input: `kind` and its sizes, or null."""
    low_rank: LowRankConfig | None = field(default_factory=LowRankConfig)
    """The low-rank branch, or null."""
    mixing: Literal["gradient", "fixed", "inverted", "off"] = "off"
    """How a layer's step is shared between its two branches: by gradient norms, half and half, against the norms (the
    branch of the smaller one takes more), or not at all."""
    unitary: tuple[str, ...] = ()
    """Sub-layers that carry the rotation alone, so that they keep their singular values."""
    targets: tuple[str, ...] = ("dense",)
    """Modules to adapt, by the end of their name; `dense` is all dense projections, `experts` the MoE experts."""
    layers: int = bounded(0, 0)
    """Adapt the last N transformer layers; 0 is all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unitary and not self.rotation:
            raise ConfigError("unitary needs an orthogonal branch; set adapter.rotation.kind.")
        if self.low_rank and self.low_rank.magnitude and self.rotation:
            told = "low_rank.magnitude (DoRA) needs a low-rank branch and no orthogonal one; use method dora."
            raise ConfigError(told)

    @property
    def full(self) -> bool:
        """Whether there is no branch at all: the weights themselves are trained, as `method: full` says."""
        return not self.rotation and not self.low_rank

    @property
    def from_gradient(self) -> bool:
        """Whether the low-rank branch starts from the gradient of some training records."""
        return bool(self.low_rank) and self.low_rank.start != "zeros"


def preset(rotation: dict | None = None, low_rank: dict | None = None, **more: Any) -> dict[str, Any]:
    mixing = "gradient" if rotation and low_rank else "off"
    return {"rotation": rotation, "low_rank": low_rank, "mixing": mixing, **more}


BUTTERFLY = {"kind": "butterfly", "block_size": 8, "factors": 4}
REFLECTIONS = {"kind": "householder", "reflections": 8}
USUAL = "lora"
PRESETS: dict[str, dict[str, Any]] = {
    "lora": preset(None, {"rank": 16}),
    "lora-ga": preset(None, {"rank": 16, "start": "lora-ga"}),
    "dora": preset(None, {"rank": 16, "magnitude": True}),
    "hra": preset({"kind": "householder", "reflections": 16}),
    "boft": preset(BUTTERFLY),
    "hybrid": preset(REFLECTIONS, {"rank": 8}),
    "hybrid-boft": preset(BUTTERFLY, {"rank": 8, "start": "lora-ga"}),
    "hybrid-unitary": preset(REFLECTIONS, {"rank": 8}, unitary=["o_proj", "down_proj"]),
    "full": preset(),
}
"""What each method sets of `adapter`, before a file and options."""
