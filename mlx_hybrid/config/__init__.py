"""Settings: YAML in, YAML out. Configs are frozen, keyword-only and strict: an unknown key is an error that names the
nearest known one. They stop at the door: inner functions take plain values."""

from mlx_hybrid.config.adapter import (
    PRESETS,
    USUAL,
    AdapterConfig,
    ButterflyConfig,
    HouseholderConfig,
    LowRankConfig,
    RotationConfig,
)
from mlx_hybrid.config.convert import build, flat, merge, to_tree
from mlx_hybrid.config.formats import from_format_1, without_retired
from mlx_hybrid.config.reading import build_config, dump_config, load_config, override_tree, read_settings
from mlx_hybrid.config.settings import BUNDLED, Config, DataConfig, GovernanceConfig, ModelConfig, TrainConfig
