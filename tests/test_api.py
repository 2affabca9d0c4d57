"""The Python API: what stands in docs/python.md runs, and what is wrong is refused in a sentence."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny_model import write_base, write_run

import mlx_hybrid
from mlx_hybrid import api
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.blas import loaded, slow_products

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_notebook_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "python.md").read_text(), flags=re.DOTALL)
    cells: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), cells)
    assert len(cells["losses"]) == 4
    assert {row.model for row in cells["rows"]} == {"base", "adapted", "difference"}
    assert cells["report"].passed
    assert (tmp_path / "first-peft" / "adapter_config.json").is_file()
    assert cells["loss"](cells["model"]).item() < cells["value"].item()


def test_every_name_is_there_documented_and_known_to_type_checkers():
    tree = ast.parse((PROJECT / "mlx_hybrid" / "__init__.py").read_text())
    (stubs,) = [node.body[0] for node in tree.body if isinstance(node, ast.If)]
    told = (PROJECT / "docs" / "python.md").read_text()
    assert (stubs.module, [alias.name for alias in stubs.names]) == ("mlx_hybrid.api", ["*"])
    assert set(mlx_hybrid.__all__) <= set(dir(mlx_hybrid))
    for name in mlx_hybrid.__all__:
        assert getattr(mlx_hybrid, name) is getattr(api, name)
        assert getattr(api, name).__doc__
        assert f"`{name}" in told
    with pytest.raises(AttributeError, match="nothing"):
        _ = mlx_hybrid.nothing


@pytest.mark.skipif(not (loaded and slow_products()), reason="products are fast as they are, or cannot be")
@pytest.mark.parametrize("first", ["", "import mlx.core"])
def test_a_fast_blas_comes_before_mlx_or_its_lack_is_told(first):
    words = "import mlx_hybrid; mlx_hybrid.Run; from mlx_hybrid.models.blas import loaded; print(loaded)"
    done = subprocess.run([sys.executable, "-c", f"{first}\n{words}"], capture_output=True, text=True)
    assert done.stdout.strip() == ("" if first else loaded)
    assert ("No fast BLAS is used" in done.stderr) == bool(first)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run and its base."""
    folder = tmp_path_factory.mktemp("api")
    base = write_base(folder / "tiny")
    return write_run(folder / "trial", base).path, base


def test_a_name_and_what_it_loads_answer_alike(tiny):
    run, base = tiny
    pair = mlx_hybrid.load(run)
    answer = mlx_hybrid.generate(pair, "hello", max_tokens=12)
    assert answer == mlx_hybrid.generate(run, [{"role": "user", "content": "hello"}], max_tokens=12)
    assert answer != mlx_hybrid.generate(base, "hello", max_tokens=12)
    assert mlx_hybrid.generate(pair, "abc", raw=True, max_tokens=3) != ""
    assert len(mlx_hybrid.generate(pair, "x" * 200)) > 12


@pytest.mark.parametrize(
    ("method", "unitary"),
    [
        *((method, []) for method in ("lora", "lora-ga", "hra", "boft", "hybrid", "hybrid-boft")),
        ("hybrid-unitary", ["o_proj"]),
    ],
)
def test_attach_changes_nothing_yet_and_gives_every_method_something_to_learn(tiny, method, unitary):
    model, _ = mlx_hybrid.load(tiny[1])
    tokens = mx.array([[2, 3, 4, 5]])
    plain = model(tokens)
    attached = mlx_hybrid.attach(
        model, method, targets=["q_proj", "o_proj", "gate_proj", "up_proj"], unitary=unitary
    )
    assert attached.trainable > 0
    assert mx.abs(model(tokens) - plain).max().item() <= 1e-5 * mx.abs(plain).max().item()
    gradients = mx.grad(lambda leaves: (model.update(leaves), model(tokens).square().sum())[1])(
        model.trainable_parameters()
    )
    assert any(mx.abs(leaf).max().item() > 0 for _, leaf in tree_flatten(gradients))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: api.load("no-such-run"), ConfigError, "no-such-run"),
        (lambda: api.attach(None, "lora", start="gradient"), ConfigError, "takes records"),
        (lambda: api.attach(None, "lore"), ConfigError, 'did you mean "lora"'),
        (
            lambda: api.finetune(model="bundled", data="nowhere.jsonl"),
            (ConfigError, DataError),
            "nowhere.jsonl",
        ),
        (lambda: api.finetune(train={"epoch": 1}), ConfigError, 'did you mean "epochs"'),
        (lambda: api.finetune(train={"epochs": "many"}), ConfigError, "epochs"),
        (lambda: api.govern("nowhere.jsonl", "out"), (ConfigError, DataError), "nowhere.jsonl"),
        (lambda: api.govern("nowhere.jsonl", langages=["sw"]), ConfigError, 'did you mean "languages"'),
        (lambda: api.evaluate("bundled", limits=3), ConfigError, 'did you mean "limit"'),
        (lambda: api.export("no-such-run", "peft", "out"), ConfigError, "no-such-run"),
    ],
)
def test_what_cannot_be_done_is_said(call, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=re.escape(said)):
        call()
    assert list(tmp_path.iterdir()) == []
