"""Recipes: YAML files that run as they are, in the repository's `recipes/` and inside the installed package."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

from mlx_hybrid.config.idle import load_run_config
from mlx_hybrid.config.reading import load_config
from mlx_hybrid.config.settings import BUNDLED, Config
from mlx_hybrid.errors import ConfigError, nearest

PACKAGE = Path(__file__).parents[1]


def recipes() -> dict[str, Path]:
    """Every recipe by name."""
    folders = (PACKAGE / "recipes", PACKAGE.parent / "recipes")
    folder = next((f for f in folders if (f / "quickstart.yaml").is_file()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """A YAML file by path, or a recipe by name. Raises ConfigError naming the nearest recipe."""
    path, known = Path(name), recipes()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{name}: no such file.")
    if name not in known:
        raise ConfigError(f'No recipe "{name}" and no file of that name; {nearest(name, known)}')
    return known[name]


def summary(path: Path) -> str:
    """A recipe's first comment line: what it does."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def first_command(path: Path) -> str:
    """The first of the commands that a recipe opens with, of the recipe at this place."""
    words = path.read_text(encoding="utf-8").partition("\n#     ")[2].partition("\n")[0]
    words = words.replace(f" {path.stem}.jsonl", f" {shlex.quote(str(path.with_suffix('.jsonl')))}")
    own = shlex.quote(str(path))
    return re.sub(rf"(finetune|compare) {path.stem}\b", lambda found: f"{found[1]} {own}", words)


def run_config(name: str | None, overrides: tuple[str, ...] = (), values: dict | None = None) -> Config:
    """The settings of a new run: of a YAML file or a recipe, with overrides and values; of the quickstart where neither
    it nor data are named. Raises ConfigError as `load_run_config` does."""
    values = dict(values or {})
    if "train.epochs" in values and values.setdefault("train.steps", 0):
        raise ConfigError("epochs and steps both say how long to train; give one of them.")
    data = "data.paths" in values or any(override.startswith("data.paths=") for override in overrides)
    if name is None and data:
        return load_run_config(None, overrides, values)
    path = recipe_path(name or "quickstart")
    return found_in(path.parent, load_run_config(path, overrides, values), after=Path.cwd())


def found_in(folder: Path, config: Config, after: Path | None = None) -> Config:
    """The config with model and data of a folder, and not of the one it comes `after`, as found from here."""

    def found(name: str) -> str:
        first = after and (after / name).exists()
        there = name not in ("", BUNDLED) and (folder / name).exists() and not first
        return str(folder / name) if there else name

    files = {key: tuple(map(found, getattr(config.data, key))) for key in ("paths", "valid", "test")}
    model = replace(config.model, name=found(config.model.name))
    return replace(config, model=model, data=replace(config.data, **files))


def recipe_files(name: str) -> list[Path]:
    """A recipe, and the records that it brings along."""
    path = recipe_path(name)
    data = load_config(path).data
    brought = [path.parent / own for own in (*data.paths, *data.valid, *data.test)]
    return [path, *filter(Path.is_file, brought)]
