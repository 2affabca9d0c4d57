"""Every setting, its default and its meaning."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_hybrid.config.adapter import USUAL, AdapterConfig
from mlx_hybrid.config.convert import Bounded, bounded
from mlx_hybrid.errors import ConfigError

BUNDLED = "bundled"
"""The model that comes with the package."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Bounded):
    """How it is trained."""

    epochs: float = bounded(3.0, 0, sane=100)
    """Passes over the training data; ignored when `steps` is set."""
    steps: int = bounded(0, 0)
    """Optimiser steps; 0 lets `epochs` decide."""
    batch_size: int = bounded(8, 1, sane=512)
    """Records in one forward pass."""
    accumulate: int = bounded(1, 1, sane=512)
    """Forward passes in one optimiser step."""
    learning_rate: float = bounded(5e-4, 1e-12, sane=0.05)
    """Peak learning rate η. Adam's first step moves the output of the median adapted layer by about 14 η of its size,
    whatever method and model (docs/method.md): 0.7 % at 5e-4."""
    rates: Literal["share", "leaf"] = "share"
    """What rates mean: `share`, as above; `leaf`, Adam's own on every number, as other programs have them."""
    orthogonal_learning_rate: float = bounded(0.0, 0, sane=0.05)
    """With `rates: leaf`, peak rate of the orthogonal branch; 0 is that of the low-rank one."""
    warmup: float = bounded(0.05, 0, 1, sane=0.5)
    """Share of the steps in which the rate rises from zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    weight_decay: float = bounded(0.0, 0, sane=1)
    """AdamW's decay of the low-rank factors A and B, and of the weight matrices with `full`; nothing else decays."""
    prompt_weight: float = bounded(1.0, 0, sane=10)
    """What prompts count beside the answers, which holds the model to what it knows: 1 is as much, 0 is nothing; 0.2
    where it is left out and their loss holds them."""
    prompt_hold: Literal["base", "loss"] = "base"
    """What counts there: `base`, KL(base ‖ model), the adapter switched off for the base; `loss`, the token's own loss,
    as always where every weight is trained, or where a run goes on from an adapter."""
    prompt_share: float = bounded(0.08, 0, 1)
    """Least share of the prompts' tokens that is held; to the base, all in a quarter of each batch's records."""
    clip: float = bounded(1.0, 0)
    """Largest norm of the whole gradient; 0 does not clip."""
    max_tokens: int = bounded(1024, 2, sane=131_072)
    """Longest record, in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What to do with a record over `max_tokens`."""
    grad_checkpoint: bool = False
    """Recompute activations in the backward pass: slower, far less memory."""
    validate_every: int = bounded(0, 0)
    """Steps between validations; 0 is ten times a run, or as often as `validate_share` pays for."""
    validate_share: float = bounded(0.1, 0, 1)
    """Most of the training time, by tokens, that validation takes: on a sample of the held-back records, drawn by
    language and label, where all are too many. 0 sets no bound."""
    average: Literal["none", "ema", "last"] = "none"
    """An average of the weights that is validated beside them, the better being kept: `ema` remembers a tenth of the
    run, `last` is the mean over the last quarter."""
    strength: float = bounded(1.0, 0, 1)
    """Part of the trained change that is kept; `auto` (or 0) takes the least of 0.25, 0.5, 0.75 and 1 whose validation
    loss is within one standard error of the lowest."""
    report_every: int = bounded(10, 1)
    """Steps between reports."""
    save_every: int = bounded(0, 0)
    """Steps between checkpoints; 0 saves at each validation."""
    keep_checkpoints: int = bounded(2, 1)
    """Checkpoints kept, the newest ones; with one, a disk that fails while it is replaced leaves none."""
    patience: int = bounded(0, 0)
    """Stop after this many validations in a row without a lower loss; 0 never does."""
    max_minutes: float = bounded(0.0, 0)
    """Stop training after so many minutes of steps, over all resumptions, and finish as usual; 0 sets no limit."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; auto does on a GPU (on the CPU each fused kernel costs a run of the C++ compiler)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epochs and not self.steps:
            raise ConfigError("epochs and train.steps are both 0, so nothing would be trained.")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Bounded):
    """Where the records are and how they are split."""

    paths: tuple[str, ...] = ()
    """Files of records (docs/formats.md), a folder with train/valid/test files, or a Hub data set; `samples` is the
    bundled data."""
    map: tuple[str, ...] = ()
    """Keys of the records by the names they are read under, as question=prompt,answer=completion."""
    valid: tuple[str, ...] = ()
    """Files to validate on; empty holds back `valid_share` of the records."""
    test: tuple[str, ...] = ()
    """Files to evaluate on; empty holds back `test_share` of the records."""
    valid_share: float = bounded(0.1, 0, 0.5)
    """Share of records held back to choose the best adapter."""
    test_share: float = bounded(0.1, 0, 0.5)
    """Share of records held back to measure base against adapter."""
    group: str = "group"
    """Records with the same value under this key are held back together (translations, one premise)."""
    temperature: float = bounded(1.0, 0.1)
    """Share of a language in training: n^(1/temperature) of its n records; 1 leaves them as they are, 5 lifts small
    languages, a large value makes all equal (α of the literature is 1/temperature)."""
    allow_changed: bool = False
    """Train on governed files even where they are no longer what their manifest says."""


@dataclass(frozen=True, kw_only=True)
class GovernanceConfig(Bounded):
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
    rules: dict[str, Any] = field(default_factory=dict)
    """Rules switched off or with a limit of your own, as `{menu: off, long_token: {limit: 80}}`."""
    keep: tuple[str, ...] = ()
    """Records that are kept whatever the rules say of them, by their id or place, as raw.jsonl:17."""
    engine: str = "py3langid"
    """Language identification: `py3langid`, or `fasttext:MODEL` with the path of a model, or `lid.176`."""
    near_threshold: float = bounded(0.8, 0.01, 1)
    """Jaccard, of character n-grams or of the characters in shared ones, from which a record repeats another."""
    against: tuple[str, ...] = ()
    """Evaluation files; a record that holds one of their texts is removed, they are never changed. `finetune` adds the
    validation and test files of `data`."""
    overlap_threshold: float = bounded(0.7, 0.01, 1)
    """Share of an evaluation text's character 13-grams from which a record holds it."""
    redact: bool = False
    """Replace e-mail addresses, phone, card and account numbers, IP addresses and keys by their type."""
    workers: int = bounded(0, 0)
    """Processes that read and check; 0 is one a core. The result does not depend on it."""
    max_reject_share: float = bounded(0.3, 0.01, 1)
    """Stop when one stage would take more than this share of a language's records."""
    min_kept: int = bounded(0, 0)
    """Stop when a language would be left with fewer records than this; 0 sets no floor."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Bounded):
    """The base, and how conversations are written for it; `model: NAME` is short for `model: {name: NAME}`."""

    name: str = BUNDLED
    """Hub id or folder of any model that mlx-lm loads; `bundled` is the small model that comes with the package."""
    template: dict[str, Any] = field(default_factory=dict)
    """Options of the chat template, as `{enable_thinking: false}`; chat, serve and evaluate of the run use them too."""
    chat_template: str = ""
    """A template for a base without one or in place of its own: plain, chatml, a file, or Jinja. Empty is the base's
    own, and plain where it has none."""
    system: Literal["keep", "fold"] = "keep"
    """A system turn stays one, or goes into the first user turn, for templates that know none."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Bounded):
    """What is shown of a run."""

    prompts: tuple[str, ...] = ()
    """Prompts that base and adapter answer after training, side by side; empty asks three general ones."""


@dataclass(frozen=True, kw_only=True)
class Config(Bounded):
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The base model, by name, and its chat template's options."""
    method: str = USUAL
    """Preset of `adapter`: lora, lora-ga, dora, hra, boft, hybrid, hybrid-boft, hybrid-unitary, or full."""
    name: str = ""
    """Name of the run; empty makes one from the method and the time."""
    seed: int = bounded(0, 0, 2**32 - 1)
    """Seed of every random choice."""
    start_from: str = ""
    """Adapter to go on from: a run, or an adapter's folder or Hub id; empty starts anew."""
    evaluate: bool = True
    """Compare base and adapter on the held-out records after training."""
    data: DataConfig = field(default_factory=DataConfig)
    governance: GovernanceConfig = field(default_factory=GovernanceConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name in (".", "..", "last") or set(self.name) & set("/\\"):
            raise ConfigError(f'name "{self.name}" cannot be a run\'s; use a plain word, or -o for a path.')
        if self.method == "full" and not self.adapter.full:
            raise ConfigError("method full trains the weights themselves; leave adapter out.")
        if self.method != "full" and self.adapter.full:
            raise ConfigError("nothing to train: adapter.rotation and adapter.low_rank are both null.")

    @property
    def has_base(self) -> bool:
        """Whether there is a base to hold prompts to: the model without what is trained, as training found it."""
        return not (self.adapter.full or self.start_from)

    @property
    def held_to_base(self) -> bool:
        return self.has_base and self.train.prompt_hold == "base" and self.train.prompt_weight > 0
