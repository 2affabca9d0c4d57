"""Inspection on one process or several: the same bytes, from any script, and a word when one of them dies."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from governance.conftest import digests

import mlx_hybrid
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.governance import govern
from mlx_hybrid.governance.govern import govern_files

SCRIPT = """
import sys
from pathlib import Path
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance import govern
from mlx_hybrid.governance.govern import govern_files
print("begun")
govern.CHUNK = 5
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


def test_as_many_processes_as_are_asked_for_whatever_the_size():
    assert (govern.workers_for(free(7), 10), govern.workers_for(free(0), 10)) == (7, 1)


def test_workers_start_together_and_one_that_dies_is_told(raw, monkeypatch):
    monkeypatch.setattr(govern, "CHUNK", 5)
    begun = []

    def kill(records):
        begun.extend(multiprocessing.active_children())
        for child in begun:
            child.kill()
            child.join()

    with pytest.raises(MlxHybridError, match=r"ended early, .*governance.workers 1 \(--workers 1\)"):
        govern_files([raw], None, free(2), progress=kill)
    assert len(begun) == 2
