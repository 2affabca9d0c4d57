"""What imports what: the rooms' direction, and a start that stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlx_hybrid"
HEAVY = {"mlx", "mlx_lm", "torch", "transformers", "peft", "jaxtyping", "tokenizers"}
SLOW = HEAVY | {"numpy", "huggingface_hub", "rich"}
LAYERS = (  # from the top; a room imports only what stands below it
    ("cli",),
    ("study",),
    ("api",),
    ("jobs",),
    ("exports", "report", "serve", "chat"),
    ("publish",),
    ("evaluation",),
    ("training",),
    ("governance",),
    ("records",),
    ("models",),
    ("adapters",),
    ("run",),
    ("config",),
    ("files",),
    ("errors",),
)
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imports(module: Path) -> set[str]:
    """Every module that a file names in an import, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module else set()
    return names


def top_level(module: Path) -> set[str]:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names} | {
        n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.module
    }


def height(room: str) -> int:
    """Of a room, the lower the deeper."""
    found = [len(LAYERS) - index for index, layer in enumerate(LAYERS) if room in layer]
    assert found, f"{room} has no place in the order of rooms"
    return found[0]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_rooms_import_only_the_rooms_below(module):
    own = room(module)
    if own in ("__init__", "__main__"):
        return
    used = {name.split(".")[1] for name in imports(module) if name.startswith("mlx_hybrid.")}
    assert not {other for other in used - {"__version__", own} if height(other) >= height(own)}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in {"governance", "records"}], ids=str)
def test_governance_and_records_know_no_mlx(module):
    assert not {name.split(".")[0] for name in imports(module)} & {"mlx", "mlx_lm", "torch", "transformers"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_torch_and_peft_are_asked_for_inside_functions_only(module):
    assert not top_level(module) & {"torch", "peft"}


@pytest.mark.parametrize(
    "module", [m for m in MODULES if room(m) in {"cli", "config", "errors", "files"}], ids=str
)
def test_the_command_line_imports_nothing_heavy_at_the_top(module):
    assert not top_level(module) & HEAVY


@pytest.mark.parametrize(
    "code",
    [
        "import mlx_hybrid",
        "import mlx_hybrid.config",
        "import mlx_hybrid.cli",
        "import sys; sys.argv[1:] = ['--help']; import mlx_hybrid.cli as c; c.main(standalone_mode=False)",
        "import sys; sys.argv[1:] = ['finetune', '--help']; import mlx_hybrid.cli as c; c.main(standalone_mode=False)",
    ],
    ids=["package", "config", "cli", "--help", "finetune --help"],
)
def test_the_start_is_light(code):
    listing = "import sys; print('|'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stderr.strip().splitlines()[-1].split("|")}
    assert "mlx_hybrid" in loaded
    assert not loaded & SLOW
