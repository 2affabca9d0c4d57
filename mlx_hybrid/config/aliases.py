"""What mlx-lm, PEFT, the Transformers Trainer, axolotl and Unsloth call a setting or an option, to suggest ours."""

import tomllib
from pathlib import Path

NAMES = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))
ALIASES, FLAGS = (
    {name: ours for ours, names in NAMES[group].items() for name in names.split()}
    for group in ("others", "flags")
)
