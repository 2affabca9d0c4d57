"""`export`, `import` and `fuse` as commands: what they print, and how they end."""

import json
import shlex

import pytest
from click.testing import CliRunner
from hf_bases import dense_base, one_thread, packed_base, trained  # noqa: F401

from mlx_hybrid.cli import main
from mlx_hybrid.models.base import BUNDLED
from mlx_hybrid.publish.card import BESIDE, is_folder, place_of

pytestmark = [
    pytest.mark.peft,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_export_prints_its_check_and_the_next_command(tmp_path):
    out = tmp_path / "my adapter"
    adapter, base = trained("hybrid", "llama", packed=True), packed_base("llama")
    result = invoke("export", adapter, "--to", "peft", "--model", base, "-o", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{out}: lora, 14 modules, rank 8"
    assert "base: base (dequantised)" in lines
    assert any(line.startswith("check: logits differ by at most") for line in lines)
    assert any("quantised base it was trained on: KL" in line for line in lines)
    assert lines[-1] == f"Next: mlx-hybrid push '{out}' OWNER/NAME"
    report = json.loads((out / "export.json").read_text())
    assert report["format"] == 1
    assert report["passed"] is True
    assert str(tmp_path) not in json.dumps(report)


def test_export_then_import_then_fuse_as_json(tmp_path):
    base = dense_base("llama")
    words = ("--to", "peft", "--model", base, "-o", tmp_path / "peft", "--json")
    first = invoke("export", trained("hra", "llama"), *words)
    assert json.loads(first.stdout)["checks"]["logits"]["passed"]
    second = invoke("import", tmp_path / "peft", "--base", base, "-o", tmp_path / "ours", "--json")
    assert json.loads(second.stdout)["kind"] == "LORA"
    third = invoke("fuse", tmp_path / "ours", "--model", base, "-o", tmp_path / "fused", "--json")
    assert json.loads(third.stdout)["checks"]["survival"]["surviving_share"] > 0.9


MISTAKES = {
    "export nowhere --to peft": "No run",
    "export last": "--to",
    "import nowhere": "no such folder",
    "export last --to peft --requantise": "--requantise is for --to merged; leave it out with --to peft.",
    "export last --to merged --requantise --base-id x": "packs the base that was trained on",
    "export last --to merged --rank 8": "--rank is for --to lora",
    "export last --to mlx-lm --base original": "--base is for",
    "import .": "no PEFT adapter there",
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_explained(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    result = invoke(*case.split(), "-o", "out")
    assert result.exit_code == 2
    assert MISTAKES[case] in result.output


@pytest.mark.parametrize("verb", [("fuse",), ("export", "--to", "merged")], ids=["fuse", "export"])
def test_a_lost_update_ends_with_three(tmp_path, verb):
    from test_merge import shrink

    small = shrink(trained("lora", "llama", packed=True), tmp_path / "small", 0.02)
    arguments = (*verb, small, "--model", packed_base("llama"), "--requantise", "-o", tmp_path / "out")
    result = invoke(*arguments)
    assert result.exit_code == 3
    assert "of the update survives" in result.output
    assert not (tmp_path / "out").exists()
    forced = invoke(*arguments, "--force")
    assert forced.exit_code == 3
    assert "FAILED: only" in forced.output
    assert "update kept by the stored weights: " in forced.output
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("command", ["export", "import", "fuse"])
def test_help_ends_with_examples(command):
    text = invoke(command, "--help").output
    assert "Examples:" in text
    assert f"mlx-hybrid {command} " in text


def test_a_run_is_named_by_path_by_name_or_as_the_last(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_HYBRID_RUNS", str(run.path.parent))
    for index, name in enumerate((run.path, run.name, "last")):
        result = invoke("export", name, "--to", "mlx-lm", "-o", tmp_path / str(index))
        assert result.exit_code == 0, result.output
        assert (tmp_path / str(index) / "adapters.safetensors").is_file()
        report = json.loads((tmp_path / str(index) / "export.json").read_text())
        assert report["adapter"]["name"] == run.name  # by which a push finds the run's results
        assert "mlx_lm.generate --model " in (tmp_path / str(index) / "README.md").read_text()


def test_what_an_import_names_next_works(tmp_path):
    """The base lies beside the PEFT files, and our adapters hold no paths."""
    adapter, base = trained("lora", "llama", packed=True), packed_base("llama")
    first = invoke("export", adapter, "--to", "peft", "--model", base, "-o", tmp_path / "peft")
    assert first.exit_code == 0, first.output
    done = invoke("import", tmp_path / "peft", "-o", tmp_path / "my adapter")
    words = shlex.split(done.stdout.splitlines()[-1].removeprefix("Next: mlx-hybrid chat "))
    assert words[1:] == ["--base-model", str(tmp_path / "peft" / "base")]
    answer = invoke("generate", *words, "abc", "--raw", "--max-tokens", "3")
    assert answer.exit_code == 0, answer.output


@pytest.mark.parametrize(("method", "to"), [("lora", "peft"), ("hybrid-boft", "peft"), ("lora", "mlx-lm")])
def test_a_base_without_a_name_is_a_path_to_fill_in(tmp_path, monkeypatch, method, to):
    adapter, base = trained(method, "llama"), dense_base("llama")
    result = invoke("export", adapter, "--to", to, "--model", base, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "The base is the local folder llama, which has no name on the Hub" in result.stderr
    text = (tmp_path / "out" / "README.md").read_text()
    assert "`path/to/llama` stands for the folder of the base" in text
    if to == "mlx-lm":
        assert "mlx_lm.generate --model path/to/llama --adapter-path out" in text
        return
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("path/to/llama", str(base)), found := {})  # the lines that the README gives
    assert any("lora" in name for name, _ in found["model"].named_parameters())


def test_a_base_that_has_a_name_or_lies_beside_is_called_by_it(tmp_path):
    for base in ("owner/model", BUNDLED, BESIDE):
        assert not is_folder(base)
    assert (place_of("out", "owner/model"), place_of("out", BESIDE)) == ("owner/model", "out/base")
    adapter, base = trained("lora", "llama"), dense_base("llama")
    result = invoke("export", adapter, "--to", "merged", "--model", base, "-o", tmp_path / "m")
    assert "local folder" not in result.stderr
