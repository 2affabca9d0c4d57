"""Lines of files to inspections, in order, on one process or spread over several."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.governance.inspection import Inspected, Inspector
from mlx_hybrid.records.record import Fault, Record, Source, parse_line, read_lines

CHUNK = 1024
CHUNK_BYTES = 4 << 20
SPREAD_FROM = 4 << 20  # bytes of input from which processes are worth their start
MOST_WORKERS = 8  # that are started unasked; the main process keeps no more of them busy
Line = tuple[int, int, bytes | Fault]  # source number, line number, the line
Places = list[tuple[int, int]]


def read_sources(sources: Sequence[Source]) -> Iterator[Line]:
    for number, source in enumerate(sources):
        for line, raw in read_lines(source):
            yield number, line, raw


def in_chunks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Up to 1,024 lines or 4 MB at a time."""
    chunk: list[Line] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line[2]) if isinstance(line[2], bytes) else 0
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def workers_for(config: GovernanceConfig, size: int) -> int:
    """As many processes as are asked for; unasked one a core, and none beside this one for a small input."""
    return config.workers or (1 if size < SPREAD_FROM else min(os.cpu_count() or 1, MOST_WORKERS))


def inspect_lines(
    sources: Sequence[Source], config: GovernanceConfig, size: int
) -> Iterator[tuple[Places, Inspected]]:
    """Inspect the lines of all sources, `size` bytes in all, chunk by chunk in order, each with the lines' places."""
    chunks = in_chunks(read_sources(sources))
    names = [source.name for source in sources]
    inspector = Inspector(
        config
    )  # here too when others work: a setting that cannot be is told before they start
    workers = workers_for(config, size)
    if workers == 1:
        for chunk in chunks:
            yield places_of(chunk), inspector.inspect(parse_chunk(chunk, names))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=start_worker, initargs=(config, names)
    )
    waiting: deque[tuple[Places, Future[Inspected]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((places_of(chunk), pool.submit(inspect_chunk, chunk)))
            if len(waiting) > 2 * workers:
                yield finished(*waiting.popleft())
        while waiting:
            yield finished(*waiting.popleft())
    except BrokenProcessPool:
        raise MlxHybridError(
            "A worker process ended early, most likely for want of memory; run again with governance.workers 1 "
            '(--workers 1). A script of your own must call this under `if __name__ == "__main__":`.'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def finished(places: Places, future: "Future[Inspected]") -> tuple[Places, Inspected]:
    return places, future.result()


WORKER: dict[str, Any] = {}


def start_worker(config: GovernanceConfig, names: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool
    WORKER["inspector"] = Inspector(config)
    WORKER["names"] = names


def inspect_chunk(chunk: list[Line]) -> Inspected:
    return WORKER["inspector"].inspect(parse_chunk(chunk, WORKER["names"]))


def places_of(chunk: list[Line]) -> Places:
    return [(source, line) for source, line, _ in chunk]


def parse_chunk(chunk: list[Line], names: list[str]) -> list[Record | Fault]:
    return [
        raw if isinstance(raw, Fault) else parse_line(raw, names[source], line) for source, line, raw in chunk
    ]
