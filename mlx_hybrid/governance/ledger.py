"""What is remembered of every record while the rest is let go, and the stages that look at all of them at once."""

import sys
from collections import Counter
from collections.abc import Callable

import numpy as np

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks.language import Finding
from mlx_hybrid.governance.checks.translations import check_pairs
from mlx_hybrid.governance.duplicates.minhash import NGRAM, NGRAM_UNSPACED
from mlx_hybrid.governance.duplicates.near import find_conflicts, find_near_duplicates
from mlx_hybrid.governance.inspection import Inspected, Inspection, read_said
from mlx_hybrid.governance.stages import ASKED_FOR, STAGES, Decision, active_stages
from mlx_hybrid.records.languages import is_unspaced

Counts = Counter[tuple[str, str, str]]
FEWEST = 5  # losses below this are told, not stopped for: a share of three records says nothing


class Ledger:
    """What is left of every record, by its number; about 700 bytes and the normalised text for each."""

    def __init__(self, config: GovernanceConfig) -> None:
        self.config = config
        self.stages = active_stages(config)
        self.items: list[Inspection] = []
        self.keys: list[np.ndarray] = []
        self.small: list[np.ndarray] = []

    @property
    def decisions(self) -> list[Decision | None]:
        """Why each record goes, or None for one that stays."""
        return [item.decision for item in self.items]

    def add(self, inspected: Inspected) -> None:
        """Append consecutive records."""
        for item in inspected.items:
            item.language, item.licence = sys.intern(item.language), sys.intern(item.licence)
        self.items += inspected.items
        self.keys.append(inspected.keys)
        self.small.append(inspected.small)

    def alive(self) -> list[int]:
        return [index for index, item in enumerate(self.items) if item.decision is None]

    def by_language(self) -> dict[str, list[int]]:
        """The records still in, by language, in order."""
        result: dict[str, list[int]] = {}
        for index in self.alive():
            result.setdefault(self.items[index].language, []).append(index)
        return result

    def decide(self, where: Callable[[int], str]) -> None:
        """Run the stages that compare records; `where` names a record by its number."""
        self.decide_parallel()
        if "exact" in self.stages:
            self.decide_exact(where)
        if "near" in self.stages:
            self.decide_near(where)
            self.flag_conflicts(where)

    def decide_parallel(self) -> None:
        rows = [index for index in self.alive() if self.items[index].pair]
        for index, (rejection, flag) in zip(rows, check_pairs([self.items[row].pair for row in rows])):
            if rejection:
                self.items[index].decision = Decision("parallel", *rejection)
            elif flag:
                self.items[index].flags += (flag,)

    def decide_exact(self, where: Callable[[int], str]) -> None:
        first: dict[bytes, int] = {}
        for index in self.alive():
            earlier = first.setdefault(self.items[index].exact, index)
            if earlier != index:
                name = where(earlier)
                self.items[index].decision = Decision("exact", "exact_dup", f"same as {name}", name)

    def decide_near(self, where: Callable[[int], str]) -> None:
        for language, rows in self.by_language().items():
            n = NGRAM_UNSPACED if is_unspaced(language[-4:]) else NGRAM
            items = [self.items[row] for row in rows]
            keys, small = gather(self.keys, rows), gather(self.small, rows)
            removed, protected = find_near_duplicates(
                lambda i, items=items: read_said(items[i].said), keys, small, n, self.config.near_threshold
            )
            for i, match in removed.items():
                name = where(rows[match.kept])
                detail = f"near_dup of {name}, {match.similarity}"
                items[i].decision = Decision("near", "near_dup", detail, name)
            for i, (other, detail) in protected.items():
                items[i].flags += (Finding("near_dup_kept", f"{where(rows[other])}: {detail}"),)

    def flag_conflicts(self, where: Callable[[int], str]) -> None:
        for rows in self.by_language().values():
            prompts, answers = zip(*(halves_of(self.items[row].said) for row in rows))
            for i, earlier in find_conflicts(prompts, answers).items():
                if i != earlier:
                    told = f"{where(rows[earlier])} answers otherwise"
                    self.items[rows[i]].flags += (Finding("prompt_conflict", told),)

    def counts(self) -> Counts:
        """How many records each (stage, language, reason) took; what stays is under ("kept", language, "")."""
        counted = Counter(
            (item.decision.stage, item.language, item.decision.reason)
            if item.decision
            else ("kept", item.language, "")
            for item in self.items
        )
        return Counter(dict(sorted(counted.items(), key=lambda pair: order_of(pair[0]))))

    def flag_counts(self) -> Counter[tuple[str, str]]:
        """How many kept records carry each flag, by language."""
        counted: Counter[tuple[str, str]] = Counter()
        for item in self.items:
            if item.decision is None:
                counted.update({(item.language, flag.reason) for flag in item.flags})
        return counted

    def alarms(self) -> list[str]:
        """Languages that one stage would take too much of, each as a sentence."""
        counts = self.counts()
        told = []
        structure = sum(count for (stage, _, _), count in counts.items() if stage == "structure")
        if self.is_too_much(structure, len(self.items)):
            told.append(f"structure would take {structure} of {len(self.items)} records")
        for language, total in sorted(Counter(item.language for item in self.items).items()):
            entering = total
            for stage in STAGES:
                reasons = Counter({r: c for (s, l, r), c in counts.items() if s == stage and l == language})
                lost = reasons.total()
                avoidable = lost - sum(reasons[reason] for reason in ASKED_FOR)
                if stage != "structure" and self.is_too_much(avoidable, entering):
                    most = max(reasons, key=lambda reason: (reasons[reason], reason))
                    told.append(
                        f"{stage} would take {lost} of {entering} {language} records, most for {most}"
                    )
                entering -= lost
            if total >= self.config.min_kept > entering:
                told.append(f"{language} would be left with {entering} of {total} records")
        return told

    def is_too_much(self, lost: int, of: int) -> bool:
        return lost >= FEWEST and lost > self.config.max_reject_share * of


def halves_of(said: bytes) -> tuple[bytes, bytes]:
    """What was asked, with the tools, and what was answered, with label and calls; both empty without a question."""
    prompt, *answer, tools = said.split(b"\0")
    return (prompt + b"\0" + tools, b"\0".join(answer)) if prompt else (b"", b"")


def gather(chunks: list[np.ndarray], rows: list[int]) -> np.ndarray:
    """The named rows, in order, of arrays that follow each other, without joining all of them first."""
    ends = np.cumsum([len(chunk) for chunk in chunks])
    numbers = np.asarray(rows)
    cuts = np.searchsorted(numbers, ends)
    first = np.concatenate([[0], cuts[:-1]])
    parts = [chunk[numbers[a:b] - (end - len(chunk))] for chunk, a, b, end in zip(chunks, first, cuts, ends)]
    return np.concatenate(parts)


def order_of(key: tuple[str, str, str]) -> tuple[int, str, str]:
    stage, language, reason = key
    return (STAGES.index(stage) if stage in STAGES else -1, language, reason)
