"""Inspection on one process or several: the same bytes, from any script, and a word when one of them dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from governance.conftest import digests

import mlx_hybrid
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.governance import spread
from mlx_hybrid.governance.govern import govern_files

SCRIPT = """
import sys
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.govern import govern_files
print("begun")
govern_files([sys.argv[1]], None, GovernanceConfig(max_reject_share=1.0, workers=2))
print("done")
"""


def free(workers: int) -> GovernanceConfig:
    return GovernanceConfig(max_reject_share=1.0, workers=workers)


def test_the_same_bytes_with_any_number_of_workers(raw, tmp_path, monkeypatch):
    started, worker = [], spread.Worker
    monkeypatch.setattr(spread, "CHUNK", 5)
    monkeypatch.setattr(spread, "Worker", lambda *a: started.append(worker(*a)) or started[-1])
    for workers in (1, 3):
        govern_files([raw], tmp_path / f"out{workers}", free(workers))
    assert digests(tmp_path / "out1") == digests(tmp_path / "out3")
    assert len(started) == 3
    assert all(one.process.returncode is not None for one in started)
    assert (spread.workers_for(free(7), 10), spread.workers_for(free(0), 10)) == (7, 1)


def test_a_script_needs_no_guard(raw, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(Path(mlx_hybrid.__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "script.py"), str(raw)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == ["begun", "done"]


def test_a_worker_that_dies_is_told(raw, monkeypatch):
    receive = spread.Worker.receive

    def killed(worker):
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        return receive(worker)

    monkeypatch.setattr(spread.Worker, "receive", killed)
    with pytest.raises(MlxHybridError, match=r"ended early, .*governance.workers 1 \(--workers 1\)"):
        govern_files([raw], None, free(2))
