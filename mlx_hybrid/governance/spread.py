"""Lines of files to inspections, in order, on one process or spread over several."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from subprocess import PIPE
from typing import Any

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.governance.inspection import Inspection, Inspector
from mlx_hybrid.records.lines import Fault, Source, read_lines
from mlx_hybrid.records.record import parse_line

CHUNK, CHUNK_BYTES = 1024, 1 << 20
SPREAD_FROM = 4 << 20  # bytes of input from which processes are worth their start
MOST_WORKERS = 8  # that are started unasked; the main process keeps no more of them busy
Line = tuple[str, int, bytes | Fault]  # name of the file, line number, the line


def read_sources(sources: Sequence[Source]) -> Iterator[Line]:
    return ((source.name, number, raw) for source in sources for number, raw in read_lines(source))


def in_chunks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Up to 1,024 lines or a megabyte at a time."""
    chunk, size = [], 0
    for line in lines:
        chunk.append(line)
        size += len(line[2]) if isinstance(line[2], bytes) else 0
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield from [chunk] if chunk else []


def workers_for(config: GovernanceConfig, size: int) -> int:
    """As many processes as are asked for; unasked one a core, and none beside this one for a small input."""
    return config.workers or (1 if size < SPREAD_FROM else min(os.cpu_count() or 1, MOST_WORKERS))


def inspect_lines(
    sources: Sequence[Source], config: GovernanceConfig, size: int
) -> Iterator[list[Inspection]]:
    """Inspect all lines, `size` bytes, chunk by chunk in order. Raises MlxHybridError when a worker ends early."""
    chunks = in_chunks(read_sources(sources))
    renames = sources[0].renames if sources else {}  # one setting for all files of a call
    # Here too when others work: a setting that cannot be is told before they start.
    inspector = Inspector(config, renames)
    most = workers_for(config, size)
    if most == 1:
        yield from (inspect(chunk, inspector) for chunk in chunks)
        return
    busy: deque[Worker] = deque()
    with contextlib.ExitStack() as stack:
        try:
            for chunk in chunks:
                if len(busy) < most:
                    worker, done = Worker(config, renames), []
                    stack.callback(worker.end)
                else:
                    worker = busy.popleft()
                    done = worker.receive()
                worker.send(chunk)
                busy.append(worker)
                yield done
            for worker in busy:
                yield worker.receive()
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            raise MlxHybridError(
                "A worker process ended early, most likely for want of memory; run again with governance.workers 1 "
                "(--workers 1)."
            ) from None


class Worker:
    """A process that inspects one chunk at a time.

    Not one of `multiprocessing`, whose children run the caller's script anew unless it guards itself against that.
    """

    def __init__(self, config: GovernanceConfig, renames: dict[str, str]) -> None:
        start = f"import sys; sys.path[:] = {sys.path!r}"
        code = f"{start}; from mlx_hybrid.governance.spread import work; work()"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE)
        self.send((config, renames))

    def send(self, value: Any) -> None:
        pickle.dump(value, self.process.stdin)
        self.process.stdin.flush()

    def receive(self) -> list[Inspection]:
        return pickle.load(self.process.stdout)

    def end(self) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def work() -> None:
    """Inspect the chunks that come in on stdin until there are no more; what libraries print goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process hears Ctrl-C and ends its workers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError):
        inspector = Inspector(*pickle.load(sys.stdin.buffer))
        while True:
            pickle.dump(inspect(pickle.load(sys.stdin.buffer), inspector), answers)
            answers.flush()


def inspect(chunk: list[Line], inspector: Inspector) -> list[Inspection]:
    read = (
        raw if isinstance(raw, Fault) else parse_line(raw, name, number, inspector.renames)
        for name, number, raw in chunk
    )
    return inspector.inspect(list(read))
