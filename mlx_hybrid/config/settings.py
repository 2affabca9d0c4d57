"""Every setting, its default and its meaning."""

from dataclasses import dataclass, field
from typing import Any, Literal

BUNDLED = "bundled"
"""The model that comes with the package."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained. Left out, a value comes from the preset that `method` names (docs/method.md)."""

    orthogonal: Literal["none", "householder", "butterfly"] = "householder"
    """Which orthogonal branch rotates a layer's input."""
    reflections: int = 8
    """Householder: how many reflections, an even number."""
    reflection_start: Literal["random", "gradient"] = "random"
    """Householder: where the pairs of reflections start; `gradient` puts them along the gradient (docs/method.md)."""
    block_size: int = 8
    """Butterfly: features rotated together by one factor, an even number; 0 or `auto` picks for each layer."""
    factors: int = 4
    """Butterfly: how many factors; the dense block is block_size · 2^(factors − 1) and must divide the inputs."""
    rank: int = 8
    """Columns of the low-rank update; 0 leaves it out."""
    alpha: float = 16.0
    """Low-rank scale: s = alpha / √rank with rslora, else alpha / rank."""
    rslora: bool = True
    """Rank-stabilised scale (Kalajdzievski 2023, arXiv 2312.03732)."""
    start: Literal["zeros", "gradient", "lora-ga"] = "gradient"
    """Where the low-rank update starts: at zero, with A along the gradient, or as LoRA-GA (docs/method.md)."""
    start_records: int = 64
    """Training records that a start from the gradient is taken from."""
    start_passes: int = 4
    """Passes over those records: 2 finds fast-decaying gradients, 4 slow ones too; an even number."""
    start_oversampling: int = 16
    """Columns of the sketch beyond twice the rank."""
    dropout: float = 0.0
    """Dropout on the input of the low-rank update."""
    magnitude: bool = False
    """Train each output's magnitude apart (DoRA); a baseline, without an orthogonal branch."""
    mixing: Literal["gradient", "fixed", "off"] = "gradient"
    """How a layer's step is shared between its two branches: by gradient norms, half and half, or not at all."""
    unitary: tuple[str, ...] = ()
    """Sub-layers that carry the rotation alone, so that they keep their singular values."""
    targets: tuple[str, ...] = ("dense",)
    """Modules to adapt, by the last part of their name; `dense` is all dense projections, `experts` the MoE experts."""
    layers: int = 0
    """Adapt the last N transformer layers; 0 is all."""

    @property
    def from_gradient(self) -> bool:
        """Whether any branch starts from the gradient of some training records."""
        return self.start != "zeros" or self.reflection_start != "random"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How it is trained."""

    epochs: float = 3.0
    """Passes over the training data; ignored when `steps` is set."""
    steps: int = 0
    """Optimiser steps; 0 lets `epochs` decide."""
    batch_size: int = 8
    """Records in one forward pass."""
    accumulate: int = 1
    """Forward passes in one optimiser step."""
    learning_rate: float = 5e-4
    """Peak learning rate of the low-rank branch, and of all weights with `full`."""
    orthogonal_learning_rate: float = 1e-4
    """Peak learning rate of the orthogonal branch."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises from zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    weight_decay: float = 0.0
    """AdamW's decay of the low-rank factors A and B, and of the weight matrices with `full`; nothing else decays."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    max_tokens: int = 1024
    """Longest record, in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What to do with a record over `max_tokens`."""
    grad_checkpoint: bool = False
    """Recompute activations in the backward pass: slower, far less memory."""
    validate_every: int = 0
    """Steps between validations; 0 is ten times a run."""
    report_every: int = 10
    """Steps between reports."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves at each validation."""
    keep_checkpoints: int = 2
    """Checkpoints kept, the newest ones; with one, a disk that fails while it is replaced leaves none."""
    patience: int = 0
    """Stop after this many validations in a row without a lower loss; 0 never does."""
    max_minutes: float = 0.0
    """Stop training after so many minutes of steps, over all resumptions, and finish as usual; 0 sets no limit."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; auto does on a GPU (on the CPU each fused kernel costs a run of the C++ compiler)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the records are and how they are split."""

    paths: tuple[str, ...] = ()
    """JSONL files, a folder with train/valid/test.jsonl, or a Hub data set; `samples` is the bundled data."""
    valid: tuple[str, ...] = ()
    """Files to validate on; empty holds back `valid_share` of the records."""
    test: tuple[str, ...] = ()
    """Files to evaluate on; empty holds back `test_share` of the records."""
    valid_share: float = 0.1
    """Share of records held back to choose the best adapter."""
    test_share: float = 0.1
    """Share of records held back to measure base against adapter."""
    group: str = "group"
    """Records with the same value under this key are held back together (translations, one premise)."""
    temperature: float = 1.0
    """Share of a language in training: n^(1/temperature) of its n records; 1 leaves them as they are, 5 lifts small
    languages, a large value makes all equal (α of the literature is 1/temperature)."""
    allow_changed: bool = False
    """Train on governed files even where they are no longer what their manifest says."""


@dataclass(frozen=True, kw_only=True)
class GovernanceConfig:
    """Which checks the records pass before training (docs/governance.md)."""

    enabled: bool = True
    """Off trains on the records as they are."""
    languages: tuple[str, ...] = ()
    """Keep only these languages (BCP-47, ISO 639 or FLORES codes); empty keeps all."""
    licences: tuple[str, ...] = ()
    """Keep only records whose `licence` is one of these; empty keeps all."""
    only: tuple[str, ...] = ()
    """Run only these stages (docs/governance.md names them)."""
    skip: tuple[str, ...] = ()
    """Leave out these stages."""
    engine: str = "py3langid"
    """Language identification: `py3langid`, or `fasttext:MODEL` with a path, a preset or a Hub id."""
    near_threshold: float = 0.8
    """Jaccard, of character n-grams or of the characters in shared ones, from which a record repeats another."""
    against: tuple[str, ...] = ()
    """Evaluation files; a record that holds one of their texts is removed, they are never changed. `finetune` adds the
    validation and test files of `data`."""
    overlap_threshold: float = 0.7
    """Share of an evaluation text's character 13-grams from which a record holds it."""
    redact: bool = False
    """Replace e-mail addresses, phone, card and account numbers, IP addresses and keys by their type."""
    workers: int = 0
    """Processes that read and check; 0 is one a core. The result does not depend on it."""
    max_reject_share: float = 0.3
    """Stop when one stage would take more than this share of a language's records."""
    min_kept: int = 0
    """Stop when a language would be left with fewer records than this; 0 sets no floor."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: str = BUNDLED
    """Hub id or folder of any model that mlx-lm loads; `bundled` is the small model that comes with the package."""
    method: str = "hybrid"
    """Preset of `adapter`: lora, lora-ga, dora, hra, boft, hybrid, hybrid-boft, hybrid-unitary, or full."""
    name: str = ""
    """Name of the run; empty makes one from the method and the time."""
    seed: int = 0
    """Seed of every random choice."""
    start_from: str = ""
    """Adapter to go on from: a run, or an adapter's folder or Hub id; empty starts anew."""
    evaluate: bool = True
    """Compare base and adapter on the held-out records after training."""
    data: DataConfig = field(default_factory=DataConfig)
    governance: GovernanceConfig = field(default_factory=GovernanceConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


PRESETS: dict[str, dict[str, Any]] = {
    "lora": {"orthogonal": "none", "rank": 16, "start": "zeros", "mixing": "off"},
    "lora-ga": {"orthogonal": "none", "rank": 16, "start": "lora-ga", "mixing": "off"},
    "dora": {"orthogonal": "none", "rank": 16, "start": "zeros", "magnitude": True, "mixing": "off"},
    "hra": {"orthogonal": "householder", "reflections": 16, "rank": 0, "start": "zeros", "mixing": "off"},
    "boft": {
        "orthogonal": "butterfly", "block_size": 8, "factors": 4, "rank": 0, "start": "zeros", "mixing": "off",
    },
    "hybrid": {"orthogonal": "householder", "reflections": 8, "rank": 8, "start": "gradient", "mixing": "gradient"},
    "hybrid-boft": {
        "orthogonal": "butterfly", "block_size": 8, "factors": 4, "rank": 8, "start": "lora-ga", "mixing": "gradient",
    },
    "hybrid-unitary": {
        "orthogonal": "householder", "reflections": 8, "rank": 8, "start": "gradient", "mixing": "gradient",
        "unitary": ("o_proj", "down_proj"),
    },
    "full": {"orthogonal": "none", "rank": 0, "start": "zeros", "mixing": "off"},
}  # fmt: skip
