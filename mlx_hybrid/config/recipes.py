"""Recipes: YAML files that run as they are, in the repository's `recipes/` and inside the installed package."""

from pathlib import Path

from mlx_hybrid.config.idle import load_run_config
from mlx_hybrid.config.settings import Config
from mlx_hybrid.errors import ConfigError, nearest

PACKAGE = Path(__file__).parents[1]


def recipes() -> dict[str, Path]:
    """Every recipe by name."""
    folders = (PACKAGE / "recipes", PACKAGE.parent / "recipes")
    folder = next((f for f in folders if (f / "quickstart.yaml").is_file()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """A YAML file by path, or a recipe by name. Raises ConfigError naming the nearest recipe."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{name}: no such file.")
        return path
    known = recipes()
    if name not in known:
        raise ConfigError(f'No recipe "{name}" and no file of that name; {nearest(name, known)}')
    return known[name]


def summary(path: Path) -> str:
    """A recipe's first comment line: what it does."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip()


def run_config(name: str | None, overrides: tuple[str, ...] = (), values: dict | None = None) -> Config:
    """The settings of a new run: of a YAML file or a recipe, with overrides and values; of the quickstart where neither
    it nor data are named. Raises ConfigError as `load_run_config` does."""
    values = values or {}
    data = "data.paths" in values or any(override.startswith("data.paths=") for override in overrides)
    if name is None and not data:
        name = "quickstart"
    return load_run_config(recipe_path(name) if name else None, overrides, values)
