"""From files to a folder that can be signed for: a pass that decides, on one or several processes, one that copies."""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from itertools import chain, repeat
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError, DataError, MlxHybridError
from mlx_hybrid.files import new_directory, sha256_of
from mlx_hybrid.governance.checks.personal import kinds_to_redact
from mlx_hybrid.governance.folder.lines import KEPT, REJECTED, kept_line, rejected_line
from mlx_hybrid.governance.folder.manifest import describe_file, write_outputs
from mlx_hybrid.governance.folder.reports import counted
from mlx_hybrid.governance.inspection import Inspection, Inspector, Ledger
from mlx_hybrid.governance.rules import Decision
from mlx_hybrid.records.files import find_files
from mlx_hybrid.records.lines import Fault, File, Source, read_lines
from mlx_hybrid.records.record import another_kind, is_kept, parse_line

CHUNK, CHUNK_BYTES = 1024, 1 << 20  # lines, or their bytes, that are inspected at a time
SPREAD_FROM = 4 << 20  # bytes of input from which processes are worth their start
MOST_WORKERS = 8  # that are started unasked; the main process keeps no more of them busy
Line = tuple[str, int, bytes | Fault]  # name of the file, line number, the line
Chunk = list[Inspection]
OWN: list[Inspector] = []  # the inspector of a worker process


def govern_files(
    files: Sequence[File],
    output: Path | None,
    config: GovernanceConfig,
    *,
    replace: bool = False,
    renames: Sequence[str] = (),
    progress: Callable[[int], None] = lambda records: None,
) -> Ledger:
    """Govern files into the new folder `output`, or, with None, only say what would be decided.

    `renames` say what keys are read as, as question=prompt. The same input and config give the same bytes whatever
    `config.workers` is. Raises ConfigError for settings and paths, DataError when a small language would suffer (a dry
    run returns the alarms instead), MlxHybridError when the disk is full.
    """
    sources = find_files(files, renames=renames)
    if output and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if not replace:
            raise ConfigError(f"{output}: is there already; name another folder, or add --replace.")
        if not (output / "manifest.json").is_file():
            told = "was not made by govern, so it is not replaced; name another folder."
            raise ConfigError(f"{output}: {told}")
    with new_directory(output) if output else nullcontext() as folder:
        ledger = decide(sources, config, progress)
        if folder is None:
            return ledger
        if ledger.alarms:
            raise DataError(describe_alarms(ledger.alarms, config))
        copy_lines(sources, ledger, folder)
        for source, before in zip(sources, ledger.sources):
            if sha256_of(source.path) != before["sha256"]:
                told = "changed while it was read; nothing was written. Run it again."
                raise DataError(f"{source.name}: {told}")
        write_outputs(folder, ledger)
    return ledger


def decide(sources: Sequence[Source], config: GovernanceConfig, progress: Callable[[int], None]) -> Ledger:
    described = [describe_file(source.path, source.name) for source in sources]
    ledger = Ledger(config)
    kinds: dict[str, str] = {}
    several = {source.name for source in sources if is_kept(source.path)}
    for items in inspect_lines(sources, config, sum(source["bytes"] for source in described)):
        for item in (item for item in items if item.kind and item.path not in several):
            # A file holds records of the kind of its first; others are set aside.
            if other := another_kind(item.kind, kinds.setdefault(item.path, item.kind)):
                item.decision, item.flags = Decision("structure", "mixed_kinds", other), ()
        ledger.add(items)
        progress(len(ledger.items))
    if missing := sorted(set(config.keep) - {item.keep for item in ledger.items}):
        raise ConfigError(f'governance.keep: no record has the id or the place "{missing[0]}".')
    ledger.decide()
    for source, told in zip(sources, described):
        told |= {"revision": source.revision} if source.revision else {}
        told |= {"map": source.renames} if source.renames else {}
    ledger.sources = counted(described, ledger.items)
    return ledger


def describe_alarms(alarms: Sequence[str], config: GovernanceConfig) -> str:
    told = f"Stopped to protect small languages, and nothing was written: {'; '.join(alarms)}"
    share = f"it is {config.max_reject_share:g}"
    ways = f"keep single records (--keep), or go on all the same (--max-reject-share 1; {share})"
    there = "`finetune` takes these as --set governance.keep=ID and --set governance.max_reject_share=1"
    return f"{told}. With `mlx-hybrid govern`, {ways}, look at the report, `rescue` what is good; {there}."


def copy_lines(sources: Sequence[Source], ledger: Ledger, folder: Path) -> None:
    """Every line to one of the two files, with what was decided under `_gov`."""
    redacts, items = kinds_to_redact(vars(ledger.config)), iter(ledger.items)
    with (folder / KEPT).open("wb") as kept, (folder / REJECTED).open("wb") as rejected:
        for source in sources:
            for (_, raw), item in zip(read_lines(source), items):
                if item.decision:
                    rejected.write(rejected_line(raw, item))
                else:
                    kept.write(kept_line(raw, item, redacts, source.renames))


def in_chunks(sources: Sequence[Source]) -> Iterator[list[Line]]:
    chunk, size = [], 0
    for line in ((source.name, *line) for source in sources for line in read_lines(source)):
        chunk.append(line)
        size += len(line[2]) if isinstance(line[2], bytes) else 0
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield from [chunk] if chunk else []


def workers_for(config: GovernanceConfig, size: int) -> int:
    """As many processes as are asked for; unasked one a core, and none beside this one for a small input."""
    return config.workers or (1 if size < SPREAD_FROM else min(os.cpu_count() or 1, MOST_WORKERS))


def inspect_lines(sources: Sequence[Source], config: GovernanceConfig, size: int) -> Iterator[Chunk]:
    """Inspect all lines, `size` bytes, chunk by chunk in order. Raises MlxHybridError when a worker ends early."""
    chunks = in_chunks(sources)
    renames = sources[0].renames if sources else {}  # one setting for all files of a call
    # Here too when others work: a setting that cannot be is told before they start.
    inspector, most = Inspector(config, renames), workers_for(config, size)
    if most == 1:
        yield from (inspect(chunk, inspector) for chunk in chunks)
        return
    pool, waiting = ProcessPoolExecutor(most, get_context("spawn"), begin, (config, renames)), deque[Future]()
    try:
        # Empty chunks first, so that all workers start at once: a pool fails oddly when one dies while another starts.
        for chunk in chain(repeat([], most), chunks):
            with without_script():
                waiting.append(pool.submit(inspect, chunk))
            if len(waiting) > most:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
    except BrokenProcessPool:
        told = "for want of memory; run again with governance.workers 1 (--workers 1)."
        raise MlxHybridError(f"A worker process ended early, most likely {told}") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def without_script() -> Iterator[None]:
    """Processes that start in here do not run the caller's script anew, as they would where it has no guard."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def begin(config: GovernanceConfig, renames: dict[str, str]) -> None:
    """Begin a worker: it leaves Ctrl-C to the main process, and what libraries print goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    OWN.append(Inspector(config, renames))


def inspect(chunk: list[Line], inspector: Inspector | None = None) -> list[Inspection]:
    own = inspector or OWN[0]
    rows = (raw if isinstance(raw, Fault) else parse_line(raw, *place, own.renames) for *place, raw in chunk)
    return own.inspect(list(rows))
