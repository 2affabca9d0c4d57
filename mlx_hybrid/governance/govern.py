"""From files to a folder that can be signed for: two passes over the lines, a few hundred bytes a record between.

The first pass parses and inspects, spread over processes; the stages that compare records follow; the second pass
copies each line, untouched but for what was decided on it, to `kept.jsonl` or `rejected.jsonl`.
"""

import dataclasses
import multiprocessing
import os
import signal
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import DataError, MlxHybridError
from mlx_hybrid.governance.checks.engines import sha256_of
from mlx_hybrid.governance.checks.likelihood import flag_unlikely
from mlx_hybrid.governance.folder.lines import note_of, write_kept, write_rejected
from mlx_hybrid.governance.inspection import Inspected, Inspector
from mlx_hybrid.governance.ledger import Ledger
from mlx_hybrid.governance.pipeline import Scorer, describe_alarms, evaluation_index
from mlx_hybrid.governance.stages import Decision
from mlx_hybrid.governance.staging import staged
from mlx_hybrid.records.files import Source, find_sources
from mlx_hybrid.records.record import Fault, Record, parse_line, read_lines

CHUNK = 1024
CHUNK_BYTES = 4 << 20
SPREAD_FROM = 4 << 20  # bytes of input from which processes are worth their start
Line = tuple[int, int, bytes | Fault]  # source number, line number, the line


@dataclass(frozen=True)
class Curated:
    """What a pass over files found; `output` is None for a dry run."""

    ledger: Ledger
    sources: list[dict[str, Any]]
    where: Callable[[int], str]
    alarms: list[str]
    output: Path | None = None
    scores: dict[int, float] = field(default_factory=dict)
    scored_with: dict[str, Any] | None = None


def govern_files(
    paths: Sequence[str | Path],
    output: Path | None,
    config: GovernanceConfig,
    *,
    scorer: Scorer | None = None,
    scored_with: dict[str, Any] | None = None,
    replace: bool = False,
    offline: bool = False,
    progress: Callable[[int], None] = lambda records: None,
) -> Curated:
    """Govern files into the new folder `output`, or, with None, only say what would be decided.

    The same input and config give the same bytes whatever `config.workers` is. `scorer` gives bits per byte of texts
    and only flags; `scored_with` identifies its model in the manifest. Raises ConfigError for settings and paths,
    DataError when a small language would suffer (a dry run returns the alarms instead), MlxHybridError when the disk
    is full.
    """
    from mlx_hybrid.governance.folder.manifest import write_outputs

    with tempfile.TemporaryDirectory(prefix="govern-") as scratch:
        sources = find_sources(paths, Path(scratch), offline=offline)
        with staged(output, replace=replace) if output else nullcontext() as folder:
            curated = decide(sources, config, scorer, progress)
            if scorer:
                curated = dataclasses.replace(curated, scored_with=scored_with or {"id": "not stated"})
            if folder is None:
                return curated
            if curated.alarms:
                raise DataError(describe_alarms(curated.alarms, config))
            copy_lines(sources, curated.ledger, folder, redacts=config.redact)
            check_unchanged(sources, curated.sources)
            curated = dataclasses.replace(curated, output=output)
            write_outputs(folder, curated, config)
    return curated


def decide(
    sources: list[Source], config: GovernanceConfig, scorer: Scorer | None, progress: Callable[[int], None]
) -> Curated:
    """Inspect every line, then compare."""
    described = [describe_source(source) for source in sources]
    ledger = Ledger(config)
    numbers = array("q")  # source and line of each record, flat: a list of pairs takes ten times the memory
    kinds: dict[int, str] = {}
    names = [source.name for source in sources]
    total = sum(source["bytes"] for source in described)
    with inspectors(config, workers_for(config, total), names) as inspect:
        for chunk, inspected in inspect(in_chunks(read_sources(sources))):
            keep_one_kind(chunk, inspected, kinds)
            ledger.add(inspected)
            numbers.extend(chain.from_iterable(chunk))
            progress(len(numbers) // 2)
    places = np.frombuffer(numbers, np.int64).reshape(-1, 2)
    for number, source in enumerate(described):
        source["records"] = int((places[:, 0] == number).sum())

    def where(index: int) -> str:
        return f"{names[places[index, 0]]}:{places[index, 1]}"

    ledger.decide(where)
    scores = {}
    if scorer:
        contents = dict(kept_contents(sources, ledger))
        scores = flag_unlikely(ledger, scorer, lambda rows: [contents[row] for row in rows])
    return Curated(ledger, described, where, ledger.alarms(), None, scores)


def describe_source(source: Source) -> dict[str, Any]:
    told = {"path": source.name, "bytes": source.path.stat().st_size, "sha256": sha256_of(source.path)}
    return told | ({"revision": source.revision} if source.revision else {})


def check_unchanged(sources: list[Source], described: list[dict[str, Any]]) -> None:
    for source, before in zip(sources, described):
        if sha256_of(source.path) != before["sha256"]:
            raise DataError(f"{source.name}: changed while it was read; nothing was written. Run it again.")


def read_sources(sources: list[Source]) -> Iterator[Line]:
    for number, source in enumerate(sources):
        for line, raw in read_lines(source.path):
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


def keep_one_kind(chunk: list[tuple[int, int]], inspected: Inspected, kinds: dict[int, str]) -> None:
    """A file holds records of the kind of its first; others are set aside."""
    for (source, _), item in zip(chunk, inspected.items):
        if item.kind and kinds.setdefault(source, item.kind) != item.kind:
            detail = f"a {item.kind} record in a file of {kinds[source]} records; keep one kind in a file"
            item.decision, item.flags = Decision("structure", "mixed_kinds", detail), ()


def workers_for(config: GovernanceConfig, size: int) -> int:
    cores = os.cpu_count() or 1
    return 1 if size < SPREAD_FROM else min(config.workers or cores, cores, 8)


@contextmanager
def inspectors(config: GovernanceConfig, workers: int, names: list[str]):
    """A function from chunks of lines to their places and inspections, in order, on one process or several."""
    if workers == 1:
        inspector = Inspector(config, evaluation_index(config))

        def alone(chunks: Iterator[list[Line]]):
            for chunk in chunks:
                yield places_of(chunk), inspector.inspect(parse_chunk(chunk, names))

        yield alone
        return
    Inspector(config)  # a setting that cannot be is told here, not from a process that then is gone
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=start_worker, initargs=(config, names)
    )

    def spread(chunks: Iterator[list[Line]]):
        waiting: deque = deque()
        for chunk in chunks:
            waiting.append((places_of(chunk), pool.submit(inspect_chunk, chunk)))
            if len(waiting) > 2 * workers:
                places, future = waiting.popleft()
                yield places, future.result()
        while waiting:
            places, future = waiting.popleft()
            yield places, future.result()

    try:
        yield spread
    except BrokenProcessPool:
        raise MlxHybridError(
            "A worker process ended early, most likely for want of memory; run again with --workers 1."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


WORKER: dict[str, Any] = {}


def start_worker(config: GovernanceConfig, names: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool
    WORKER["inspector"] = Inspector(config, evaluation_index(config))
    WORKER["names"] = names


def inspect_chunk(chunk: list[Line]) -> Inspected:
    return WORKER["inspector"].inspect(parse_chunk(chunk, WORKER["names"]))


def places_of(chunk: list[Line]) -> list[tuple[int, int]]:
    return [(source, line) for source, line, _ in chunk]


def parse_chunk(chunk: list[Line], names: list[str]) -> list[Record | Fault]:
    return [
        raw if isinstance(raw, Fault) else parse_line(raw, names[source], line) for source, line, raw in chunk
    ]


def kept_contents(sources: list[Source], ledger: Ledger) -> Iterator[tuple[int, str]]:
    for index, (number, line, raw) in enumerate(read_sources(sources)):
        if ledger.decisions[index] is None:
            record = parse_line(raw, sources[number].name, line)
            yield index, record.content()[:4000]


def copy_lines(sources: list[Source], ledger: Ledger, folder: Path, *, redacts: bool) -> None:
    """Every line to one of the two files, with what was decided under `_gov`."""
    with (folder / "kept.jsonl").open("wb") as kept, (folder / "rejected.jsonl").open("wb") as rejected:
        lines = read_sources(sources)
        for index, (number, line, raw) in enumerate(lines):
            if index >= len(ledger.decisions):
                break
            decision = ledger.decisions[index]
            note = note_of(f"{sources[number].name}:{line}", ledger.languages[index], decision)
            if decision:
                write_rejected(rejected, raw, note)
            else:
                write_kept(kept, raw, note, ledger.flags.get(index, ()), redacts)
