"""Two processes that train together over MLX's ring on this machine, beside one that trains alone."""

import json
import multiprocessing
import shutil
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import machine_jobs
import mlx.core as mx
import pytest
from click.testing import CliRunner
from scene import same
from tolerances import ADAM, ROUNDING

from mlx_hybrid.cli import main
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.training.batches import make_batch
from mlx_hybrid.training.checkpoint import checkpoints
from mlx_hybrid.training.distributed import ALONE, check_divisible, join
from mlx_hybrid.training.loop import step_seed

pytestmark = pytest.mark.slow

SUMS = 1e-6
"""Two orders of one float32 sum of gradients near 1 and below, absolute."""
LONGEST = 120  # seconds that a process may take
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    CONTEXT.set_forkserver_preload(["machine_jobs"])  # imported once: that is most of a process's time


def together(job: str, folder: Path, *given: object) -> list[BaseProcess]:
    """Start a job as two machines, as `mlx.launch` does on one machine."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    processes = []
    for rank in "01":
        own = {"MLX_RANK": rank, "MLX_HOSTFILE": str(hosts)}
        processes.append(CONTEXT.Process(target=machine_jobs.enter, args=(job, folder, given, own)))
        processes[-1].start()
    return processes


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def ended(processes: list[BaseProcess], folder: Path, codes: tuple[int, int] = (0, 0)) -> list[str]:
    """What each wrote to stderr, after it ended with its code."""
    for process in processes:
        process.join(LONGEST)
        if process.exitcode is None:
            process.kill()
            process.join()
    said = [(folder / f"{rank}.err").read_text() for rank in range(2)]
    assert tuple(process.exitcode for process in processes) == codes, said
    return said


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Gradients and runs of one machine, and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    machine_jobs.sums_and_runs(ALONE, one)
    ended(together("sums_and_runs", two), two)
    return one, two


def saved(folder: Path, name: str, rank: int = 0) -> dict[str, mx.array]:
    return {n: v.astype(mx.float32) for n, v in mx.load(str(folder / f"{name}.{rank}.safetensors")).items()}


def told(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / f"{name}.{rank}.json").read_text())


def difference(a: dict[str, mx.array], b: dict[str, mx.array]) -> float:
    return max(float(mx.max(mx.abs(a[name] - b[name]))) for name in a)


def gap(a: dict[str, mx.array], b: dict[str, mx.array]) -> float:
    """Largest difference, relative to the largest entry of its array."""
    assert a.keys() == b.keys()
    sizes = {n: max(float(mx.max(mx.abs(v))), 1e-12) for n, v in a.items()}
    return max(float(mx.max(mx.abs(a[n] - b[n]))) / sizes[n] for n in a)


@pytest.mark.parametrize("group", machine_jobs.GROUPS)
def test_two_machines_have_the_gradient_of_one(group, folders):
    one, two = (saved(folder, f"all {group}") for folder in folders)
    assert same(two, saved(folders[1], f"all {group}", 1))
    assert one["count"].item() == two["count"].item()
    assert two.pop("loss").item() == pytest.approx(one.pop("loss").item(), rel=SUMS)
    assert difference(one, two) <= SUMS
    for rank in range(2):
        assert difference(one, saved(folders[1], f"part {group}", rank)) > 1000 * SUMS


@pytest.mark.parametrize("name", machine_jobs.METHODS)
def test_two_machines_train_as_one(name, folders):
    """Losses, λ, validations, folds and the last state are those of one machine, and the same on both to the bit."""
    one, two = (told(folder, name) for folder in folders)
    assert two == told(folders[1], name, 1)
    assert len(one["told"]) == len(two["told"]) == 6
    for mine, theirs in zip(one["told"], two["told"], strict=True):
        assert theirs == pytest.approx(mine, rel=ROUNDING)
    ends = [saved(folder, name) for folder in folders]
    assert same(ends[1], saved(folders[1], name, 1))
    assert gap(*ends) <= ADAM
    assert gap(ends[0], saved(folders[0], f"{name} before")) > 10 * ADAM


def test_a_stop_asked_of_one_machine_stops_all_after_the_same_step(folders):
    assert [told(folders[1], "stopped", rank)["steps"] for rank in range(2)] == [3, 3]
    assert told(folders[0], "stopped")["steps"] == 3


def test_a_lost_machine_ends_the_run_with_its_last_step_saved(folders, tmp_path):
    """Two machines go on from there and end where they would have without the loss, to the bit; so does one, nearly."""
    processes = together("killed", tmp_path)
    assert "another one is gone" in ended(processes, tmp_path, (1, -signal.SIGKILL))[0]
    assert checkpoints(tmp_path / "checkpoints")[-1].name == f"step-{machine_jobs.LOST_AFTER:07d}"
    alone = shutil.copytree(tmp_path, tmp_path / "alone")
    machine_jobs.resumed(ALONE, alone)
    assert gap(saved(alone, "resumed"), saved(folders[0], "hybrid-boft")) <= ADAM
    ended(together("resumed", tmp_path), tmp_path)
    assert same(saved(tmp_path, "resumed"), saved(folders[1], "hybrid-boft"))


def test_machines_that_differ_are_refused_by_all(folders):
    for rank in range(2):
        assert "Machine 2 differs from the first one in its settings, versions." in told(
            folders[1], "unlike", rank
        )


def test_the_command_writes_and_speaks_on_the_first_machine_alone(tmp_path, model_folder):
    rows = [
        {"language": "en", "label": word, "messages": [
            {"role": "user", "content": f"{word} {number}"}, {"role": "assistant", "content": word}]}
        for number in range(12) for word in ("up", "down")
    ]  # fmt: skip
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(model_folder, tmp_path / "tiny")
    settings = ["governance.enabled=false", "evaluate=false", "train.steps=2", "method=lora"]
    command = [tmp_path, "finetune", "--model", "tiny", "--data", "records.jsonl", "-o", "run"]
    command += [word for setting in settings for word in ("--set", setting)]
    first, second = ended(together("command", tmp_path, *command), tmp_path)
    assert "2 steps over 18 records, by 2 machines." in first
    assert (tmp_path / "0.out").read_text().rstrip().endswith("mlx-hybrid chat run")
    assert second == (tmp_path / "1.out").read_text() == ""
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["status"], info["machines"], info["step"]) == ("finished", 2, 2)


def test_one_machine_is_left_as_it_is(monkeypatch, tmp_path):
    tree = {"g": mx.ones(3)}
    assert ALONE.share(make_batch) is make_batch
    assert ALONE.mean_gradients(tree) is tree
    monkeypatch.delenv("MLX_RANK", raising=False)
    assert join() is ALONE
    monkeypatch.setenv("MLX_RANK", "0")  # mlx.launch -n 1
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    (tmp_path / "hosts").write_text("\n")
    assert join() is ALONE
    (tmp_path / "hosts").write_text("no hosts")
    with pytest.raises(ConfigError, match="did not find each other"):
        join()
    refused = CliRunner().invoke(main, ["runs"])
    assert (refused.exit_code, "runs runs in one process" in refused.stderr) == (2, True)


def test_batches_that_cannot_be_shared_evenly_are_refused():
    check_divisible(6, 3)
    with pytest.raises(ConfigError, match=r"batch_size is 8, .* 3 machines .*; use 9"):
        check_divisible(8, 3)
    with pytest.raises(ConfigError, match="use 3"):
        check_divisible(1, 3)


def test_no_two_machines_or_steps_drop_the_same():
    seeds = {step_seed(seed, step, machine) for seed in (0, 7) for step in range(5) for machine in range(4)}
    assert len(seeds) == 40
    assert step_seed(3, 4) == step_seed(3, 4, 0)
