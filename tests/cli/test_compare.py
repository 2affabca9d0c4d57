"""`compare` on a tiny model: every file, every figure with its interval, and nothing done twice."""

import csv
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from benchmark import write_sib200
from click.testing import Result
from commanding import command
from tolerances import LOGITS

from mlx_hybrid.cli import compare as module

pytestmark = pytest.mark.slow

STEPS = {"steps": 3, "batch_size": 4, "report_every": 1, "validate_every": 2}
SETTINGS = {
    "governance": {"enabled": False},
    "train": STEPS | {"learning_rate": 4e-3, "orthogonal_learning_rate": 1e-3},
}


def compare(folder: Path, output: Path, *more: object, **how: object) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_hybrid.study.plan.ROUNDS", 1)  # of grids that grow: one shows what four do
        patch.setattr(
            "mlx_hybrid.study.summary.FEWEST", 2
        )  # a few records stand for the many that p asks for
        return command("compare", folder / "source.yaml", "-o", output, *more, **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quantised_folder) -> Path:
    """Records and a config that names them."""
    folder = tmp_path_factory.mktemp("comparison")
    copy = write_sib200(folder / "copy", 7)
    command("task", "sib200", "--from", copy, "--languages", "en,de", "-o", folder / "sib", code=0)
    source = SETTINGS | {"model": str(quantised_folder), "data": {"paths": [str(folder / "sib")]}}
    (folder / "source.yaml").write_text(json.dumps(source))
    return folder


SHORT = ("--methods", "lora", "--seeds", 1, "--limit", 2, "--retain", "none", "--set", "train.steps=1")
ASKED = ("--methods", "lora,hybrid", "--seeds", 2, "--lrs", "1e-3,4e-3", "--variants", "lower", "--limit", 5)


@pytest.fixture(scope="module")
def done(folder) -> tuple[Path, Result]:
    output = folder / "done"
    return output, compare(folder, output, *ASKED, code=0)


def rows(output: Path) -> list[dict]:
    with (output / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_file_is_there_and_the_last_line_is_a_command(done):
    output, result = done
    pages, results = {"report.html", "results.csv"}, {"summary.json", "plan.json", "cells.jsonl"}
    assert pages | results | {"cells", "base"} <= {path.name for path in output.iterdir()}
    figures = {path.name for path in (output / "figures").iterdir()}
    for name in ("frontier", "forgetting", "languages", "curves", "reliability", "mixing"):
        assert {f"{name}.svg", f"{name}.png"} <= figures
    assert result.stdout.splitlines()[-1] == f"Next: mlx-hybrid report {output}"
    for title in ("Table II.", "Table II b.", "Table III.", "Table IV.", "Table VI.", "Learning rates"):
        assert title in result.stdout
        assert title in (output / "report.html").read_text()
    assert "Table V." not in result.stdout
    assert "over seeds alone" not in result.stdout
    cells = [json.loads(line) for line in (output / "cells.jsonl").read_text().splitlines()]
    expected = [(m, s) for s in (0, 1) for m in ("lora", "hybrid")]
    assert [(own["method"], own["seed"]) for own in cells] == expected
    assert all({"accuracy", "nll", "trainable", "train_seconds"} <= set(own) for own in cells)


def test_no_figure_stands_without_its_interval(done):
    table = rows(done[0])
    assert {row["method"] for row in table} == {"base", "lora", "hybrid"}
    for row in table:
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        assert row["seeds"] == ("0" if row["method"] == "base" else "2")
    for metric in ("accuracy", "ece"):
        compared = [row for row in table if row["method"] == "hybrid" and row["metric"] == metric]
        assert len(compared) == 3  # the whole and two languages
        for row in compared:
            assert 0 <= float(row["difference_p"]) <= float(row["difference_p_holm"]) <= 1


def test_what_was_forgotten_is_measured_beside_what_was_gained(done):
    own = [row for row in rows(done[0]) if row["variant"].startswith("retention")]
    assert {row["method"] for row in own} == {"base", "lora", "hybrid"}
    assert {"all", "code", "math", "swh_Latn", "deu_Latn"} <= {row["language"] for row in own}
    assert {row["variant"] for row in own if row["language"] == "all"} == {"retention", "retention-untrained"}
    compared = [row for row in own if row["method"] == "hybrid" and row["language"] == "all"]
    assert all(0 <= float(row["from_base_p"]) <= 1 for row in compared)
    assert "other text, bits per byte" in done[1].stdout
    assert "Table II d. Other text by language" in done[1].stdout


def test_the_rate_is_that_of_least_validation_loss(done):
    summary = json.loads((done[0] / "summary.json").read_text())
    for method in ("lora", "hybrid"):
        own = [row for row in summary["grid"] if row["method"] == method]
        assert len(own) == 3  # the best of two is at an end, so that each gets one more
        assert len(own) == len(summary["grid"]) / 2  # as many trials for every method
        best = min(own, key=lambda row: row["valid_loss_nats_per_token"])["rate"]
        assert summary["chosen"][method] == best
        cells = {path.name for path in (done[0] / "cells" / method / "own").iterdir()}
        assert {f"lr-{best:g}-seed-0", f"lr-{best:g}-seed-1"} <= cells


def test_a_second_call_trains_and_measures_nothing(done, folder):
    output, first = done
    times = {path: path.stat().st_mtime_ns for path in output.rglob("adapters.safetensors")}
    summary = (output / "summary.json").read_text()
    result = compare(folder, output, *ASKED, code=0)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("adapters.safetensors")} == times
    assert (output / "summary.json").read_text() == summary
    assert result.stdout == first.stdout


def test_a_lost_cell_alone_is_made_again_and_comes_out_the_same(done, folder, tmp_path):
    output = Path(shutil.copytree(done[0], tmp_path / "copy"))
    before = json.loads((output / "summary.json").read_text())
    rate = before["chosen"]["lora"]
    shutil.rmtree(output / "cells" / "lora" / "own" / f"lr-{rate:g}-seed-1")
    for path in output.rglob("config.yaml"):  # cells name the data of the comparison they were copied from
        path.write_text(path.read_text().replace(str(done[0]), str(output)))
    result = compare(folder, output, *ASKED, code=0)
    assert result.stderr.count("(done before)") == 3
    after = json.loads((output / "summary.json").read_text())
    nll = lambda told: [r["values"] for r in told["rows"] if r["metric"] == "nll" and r["seeds"]]  # noqa: E731
    assert nll(before) == nll(after)


def test_other_terms_are_refused_in_the_same_folder(done, folder):
    assert "another limit" in compare(folder, done[0], "--methods", "lora", "--limit", 4, code=2).stderr


def test_a_folder_that_refused_its_data_takes_the_command_put_right(folder, tmp_path):
    output, lost = tmp_path / "out", tmp_path / "tests-only"
    lost.mkdir()
    shutil.copy(folder / "sib" / "test.jsonl", lost)
    refused = compare(folder, output, *SHORT, "--data", lost)
    assert "no train file" in refused.stderr
    compare(folder, output, *SHORT, "--data", folder / "sib", code=0)


def test_governed_data_is_held_to_its_manifest_and_named_in_every_cell(folder, tmp_path):
    """As `finetune` does; only a copy of the records is trained on, which no manifest lies beside."""
    governed, output = tmp_path / "governed", tmp_path / "out"
    command("govern", folder / "sib" / "train.jsonl", "-o", governed, code=0)
    kept, digest = governed / "kept.jsonl", sha256((governed / "manifest.json").read_bytes()).hexdigest()
    asked = ("--data", kept, *SHORT)
    for use in ("valid", "test"):
        asked += ("--set", f"data.{use}=[{folder}/sib/{use}.jsonl]")
    signed = kept.read_bytes()
    kept.write_bytes(signed[:-1] + b" \n")
    assert "--allow-changed-data" in compare(folder, output, *asked, code=3).stderr
    compare(folder, tmp_path / "allowed", *asked, "--allow-changed-data", code=0)
    kept.write_bytes(signed)
    compare(folder, output, *asked, code=0)
    told = [output / "plan.json", *output.glob("cells/*/*/*/run.json")]
    assert [json.loads(path.read_text())["data_manifests"] for path in told] == [[digest]] * 2


def test_governance_and_noise_fill_table_five(folder, tmp_path):
    output = tmp_path / "governed"
    result = compare(folder, output, *SHORT, "--governance", "off,exact", "--noise", 0.3, code=0)
    assert "Table V." in result.stdout
    assert "planted found  others lost" in result.stdout
    assert "All but Table V is of the first governance setting, off." in result.stdout
    assert "differs from lora" not in result.stdout
    assert "One seed, so no variation of training is measured" in result.stdout
    footprint = result.stdout.partition("Table VI.")[2].partition("\n\n")[0]
    assert "trainable" in footprint
    assert "±" not in footprint  # of one run no interval is known, least of all one of nothing
    assert "±" in result.stdout.partition("Table II.")[2].splitlines()[2]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["governed"]["off"]["kept"] == summary["governed"]["off"]["records"]
    assert summary["governed"]["off"]["planted"] > 0


def compare_on(
    records: Callable[[int, str, str], dict], folder: Path, output: Path, *more: object, **how: object
) -> Result:
    """A comparison of two methods on records made for each number and direction between two languages."""
    data = output.with_name("data")
    data.mkdir()
    for name, numbers in (("train", range(8)), ("valid", range(8, 10)), ("test", range(10, 14))):
        made = [records(n, a, b) for n in numbers for a, b in (("en", "de"), ("de", "en"))]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    asked = ("--methods", "lora,hra", *SHORT[2:4], *SHORT[6:], "--data", data, *more)
    return compare(folder, output, *asked, **how)


def test_translations_fill_table_three_with_intervals(folder, tmp_path):
    def make(number: int, source: str, target: str) -> dict:
        row = {"prompt": f"To {target}: {number}", "completion": f"{number} in {target}", "language": target}
        return row | {"source_language": source, "group": str(number)}

    output = tmp_path / "out"
    result = compare_on(make, folder, output, "--max-tokens", 8, code=0)
    titles = ("Table III. Parity", "Table III b. chrF++ by direction")
    for words in (*titles, "Of chrF++.", "eng_Latn>deu_Latn"):
        assert words in result.stdout
    told = [row for row in rows(output) if row["metric"].startswith(("chrf", "balance"))]
    assert {"chrf", "chrf_out", "chrf_in", "balance", "balance_size"} <= {row["metric"] for row in told}
    compared = [row for row in told if row["method"] == "hra"]
    assert all(row["difference_p_holm"] for row in compared)
    kept = (output / "base" / "answers" / "model.answers.jsonl").read_text().splitlines()[1:]
    answers = [row for row in map(json.loads, kept) if row["part"] == "test"]
    # A byte may be shown as three.
    assert answers
    assert all(len(row["text"].encode()) <= 3 * 8 for row in answers)


def test_texts_are_compared_in_bits_per_byte(folder, tmp_path):
    output = tmp_path / "out"
    make = lambda number, _, language: {"text": f"{language} text {number}", "language": language}  # noqa: E731
    result = compare_on(make, folder, output, code=0)
    assert "Table II b. Bits per byte by language" in result.stdout
    assert "Lower is better." in result.stdout
    of = ("method", "metric", "variant")
    compared = [r for r in rows(output) if [r[key] for key in of] == ["hra", "bits_per_byte", ""]]
    assert [row["language"] for row in compared] == ["all", "deu_Latn", "eng_Latn"]
    assert all(row["difference_p_holm"] for row in compared)


BAD = {
    "--methods lora,hybrd": 'did you mean "hybrid"',
    "--lrs 1e-3,fast": "write numbers",
    "--lrs 0,1e-3": "--lrs 0,1e-3: write numbers above zero",
    "--retain nowhere.jsonl": "nowhere.jsonl: no such file",
    "--governance langage": 'did you mean "language"',
    "--variants lowr": 'Unknown variant "lowr"',
    "--variants tatweel": "applies to none of deu_Latn, eng_Latn",
    "--pivot sw": "no test record is in swh_Latn",
    "--set adapter.low_rank.rank=2": "adapter.low_rank.rank is set for every method",
    "--data nowhere.jsonl": "nowhere.jsonl is not there",
    "--max-tokens 9": "--max-tokens is for translations",
    "--workers 0": "x>=1",
    "--noise 0.8": "0<=x<=0.5",
}


@pytest.mark.parametrize("asked", BAD)
def test_bad_input_is_one_sentence(asked, folder, tmp_path):
    said = compare(folder, tmp_path / "out", *asked.split(), code=2).stderr
    assert BAD[asked] in said
    errors = [
        line for line in said.splitlines() if not line.startswith("No fast BLAS")
    ]  # what a machine lacks
    assert len(errors) == 1 or "Usage:" in said


def test_rates_are_sorted_each_once():
    read = next(p for p in module.compare.params if p.name == "rates").callback
    assert read(None, None, ("5e-3,1e-3,", "5e-3")) == (1e-3, 5e-3)
    assert read(None, None, ()) == ()


def test_cells_at_a_time_give_the_same_figures(folder, tmp_path, done, default_install):
    """In processes of their own, with spawned imports: what each cell answers does not change."""
    chosen = json.loads((done[0] / "summary.json").read_text())["chosen"]
    asked = (*ASKED[:2], "--seeds", 1, "--lrs", chosen["lora"], *ASKED[6:])
    result = compare(folder, tmp_path / "out", *asked, "--workers", 2, code=0)
    assert "2 of 2 done" in result.stderr
    for method in (name for name, rate in chosen.items() if rate == chosen["lora"]):
        cell = f"cells/{method}/own/lr-{chosen['lora']:g}-seed-0/evaluation/comparison.json"
        paths = (tmp_path / "out" / cell, done[0] / cell)
        own, alone = (json.loads(path.read_text())["examples"] for path in paths)
        losses, expected = (told.pop("nll_nats") for told in (own, alone))
        assert own == alone
        assert losses == pytest.approx(expected, abs=LOGITS)  # another BLAS may be loaded there


def test_a_cell_that_fails_in_its_process_ends_the_comparison_with_its_reason(
    folder, tmp_path, default_install
):
    asked = ("--methods", "lora,boft", "--seeds", 1, "--workers", 2, "--limit", 5)
    assert "nowhere" in compare(folder, tmp_path, *asked, "--set", "adapter.targets=[nowhere]", code=2).stderr
