"""Recipes: YAML files that run as they are, in the repository's `recipes/` and inside the installed package."""

from pathlib import Path

from mlx_hybrid.errors import ConfigError, nearest

PACKAGE = Path(__file__).parent


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
