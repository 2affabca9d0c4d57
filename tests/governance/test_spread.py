"""Inspection on one process or several: the same bytes, from any script, and a word when one of them dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from governance.conftest import digests

import mlx_hybrid
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.governance import spread
from mlx_hybrid.governance.govern import govern_files

SCRIPT = """
import sys
from pathlib import Path
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance import spread
from mlx_hybrid.governance.govern import govern_files
print("begun")
spread.CHUNK = 5
govern_files([sys.argv[1]], Path(sys.argv[2]), GovernanceConfig(max_reject_share=1.0, workers=2))
print("done")
"""


def free(workers: int) -> GovernanceConfig:
    return GovernanceConfig(max_reject_share=1.0, workers=workers)


def test_a_script_needs_no_guard_and_several_workers_give_the_bytes_of_one(raw, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(Path(mlx_hybrid.__file__).parents[1])}
    command = [sys.executable, *map(str, (tmp_path / "script.py", raw, tmp_path / "two"))]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == ["begun", "done"]
    govern_files([raw], tmp_path / "one", free(1))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


class Here:
    """A worker in this process."""

    started: ClassVar[list] = []

    def __init__(self, *settings) -> None:
        self.inspector, self.is_ended = spread.Inspector(*settings), False
        self.started.append(self)

    def send(self, chunk) -> None:
        self.chunk = chunk

    def receive(self):
        return spread.inspect(self.chunk, self.inspector)

    def end(self) -> None:
        self.is_ended = True


def test_as_many_processes_as_are_asked_for_whatever_the_size(raw, monkeypatch):
    monkeypatch.setattr(spread, "CHUNK", 5)
    monkeypatch.setattr(spread, "Worker", Here)
    assert govern_files([raw], None, free(3)).items == govern_files([raw], None, free(1)).items
    assert [worker.is_ended for worker in Here.started] == [True] * 3
    assert (spread.workers_for(free(7), 10), spread.workers_for(free(0), 10)) == (7, 1)


def test_a_worker_that_dies_is_told(raw, monkeypatch):
    receive = spread.Worker.receive

    def killed(worker):
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        return receive(worker)

    monkeypatch.setattr(spread.Worker, "receive", killed)
    with pytest.raises(MlxHybridError, match=r"ended early, .*governance.workers 1 \(--workers 1\)"):
        govern_files([raw], None, free(2))
