"""What is remembered of every record while the rest is let go, and the stages that look at all of them at once."""

import sys
from collections import Counter
from collections.abc import Callable

import numpy as np

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks.language import Finding
from mlx_hybrid.governance.checks.translations import Pair, check_pairs
from mlx_hybrid.governance.duplicates.minhash import NGRAM, NGRAM_UNSPACED
from mlx_hybrid.governance.duplicates.near import find_conflicts, find_near_duplicates
from mlx_hybrid.governance.inspection import Inspected, Inspection, read_said
from mlx_hybrid.governance.stages import ASKED_FOR, STAGES, Decision, active_stages
from mlx_hybrid.records.languages import is_unspaced

Counts = Counter[tuple[str, str, str]]
FEWEST = 5  # losses below this are told, not stopped for: a share of three records says nothing


class Ledger:
    """Decisions, flags and fingerprints by record number; about 700 bytes and the normalised text for each."""

    def __init__(self, config: GovernanceConfig) -> None:
        self.config = config
        self.stages = active_stages(config)
        self.languages: list[str] = []
        self.decisions: list[Decision | None] = []
        self.flags: dict[int, tuple[Finding, ...]] = {}
        self.exact: list[bytes] = []
        self.said: list[bytes] = []
        self.licences: list[str] = []
        self.pairs: dict[int, Pair] = {}
        self.keys: list[np.ndarray] = []
        self.small: list[np.ndarray] = []

    def add(self, inspected: Inspected) -> None:
        """Append consecutive records."""
        for item in inspected.items:
            self.add_one(item)
        self.keys.append(inspected.keys)
        self.small.append(inspected.small)

    def add_one(self, item: Inspection) -> None:
        index = len(self.decisions)
        self.languages.append(sys.intern(item.language))
        self.decisions.append(item.decision)
        self.licences.append(sys.intern(item.licence))
        self.exact.append(item.exact)
        self.said.append(item.said if item.decision is None else b"")
        if item.flags:
            self.flags[index] = item.flags
        if item.pair and item.decision is None:
            self.pairs[index] = item.pair

    def flag(self, index: int, finding: Finding) -> None:
        self.flags[index] = (*self.flags.get(index, ()), finding)

    def alive(self) -> list[int]:
        return [index for index, decision in enumerate(self.decisions) if decision is None]

    def by_language(self) -> dict[str, list[int]]:
        """The records still in, by language, in order."""
        result: dict[str, list[int]] = {}
        for index in self.alive():
            result.setdefault(self.languages[index], []).append(index)
        return result

    def decide(self, where: Callable[[int], str]) -> None:
        """Run the stages that compare records; `where` names a record by its number."""
        self.decide_parallel()
        if "exact" in self.stages:
            self.decide_exact(where)
        if "near" in self.stages:
            self.decide_near(where)

    def decide_parallel(self) -> None:
        rows = sorted(self.pairs)
        for index, (rejection, flag) in zip(rows, check_pairs([self.pairs[row] for row in rows])):
            if rejection:
                self.decisions[index] = Decision("parallel", *rejection)
            elif flag:
                self.flag(index, flag)

    def decide_exact(self, where: Callable[[int], str]) -> None:
        first: dict[bytes, int] = {}
        for index in self.alive():
            earlier = first.setdefault(self.exact[index], index)
            if earlier != index:
                name = where(earlier)
                self.decisions[index] = Decision("exact", "exact_dup", f"same as {name}", name)

    def decide_near(self, where: Callable[[int], str]) -> None:
        for language, rows in self.by_language().items():
            n = NGRAM_UNSPACED if is_unspaced(language[-4:]) else NGRAM
            said = [self.said[row] for row in rows]
            keys, small = gather(self.keys, rows), gather(self.small, rows)
            removed, protected = find_near_duplicates(
                lambda i, said=said: read_said(said[i]), keys, small, n, self.config.near_threshold
            )
            for i, match in removed.items():
                name = where(rows[match.kept])
                detail = f"near_dup of {name}, {match.similarity}"
                self.decisions[rows[i]] = Decision("near", "near_dup", detail, name)
            for i, (other, detail) in protected.items():
                self.flag(rows[i], Finding("near_dup_kept", f"{where(rows[other])}: {detail}"))
        self.flag_conflicts(where)

    def flag_conflicts(self, where: Callable[[int], str]) -> None:
        for rows in self.by_language().values():
            prompts, answers = zip(*(halves_of(self.said[row]) for row in rows))
            for i, earlier in find_conflicts(prompts, answers).items():
                if i != earlier:
                    self.flag(
                        rows[i], Finding("prompt_conflict", f"{where(rows[earlier])} answers otherwise")
                    )

    def counts(self) -> Counts:
        """How many records each (stage, language, reason) took; what stays is under ("kept", language, "")."""
        counted: Counts = Counter()
        for language, decision in zip(self.languages, self.decisions):
            counted[(decision.stage, language, decision.reason) if decision else ("kept", language, "")] += 1
        return Counter(dict(sorted(counted.items(), key=lambda item: order_of(item[0]))))

    def flag_counts(self) -> Counter[tuple[str, str]]:
        """How many kept records carry each flag, by language."""
        counted: Counter[tuple[str, str]] = Counter()
        for index, flags in sorted(self.flags.items()):
            if self.decisions[index] is None:
                counted.update({(self.languages[index], flag.reason): 1 for flag in flags})
        return counted

    def alarms(self) -> list[str]:
        """Languages that one stage would take too much of, each as a sentence."""
        counts, config = self.counts(), self.config
        before = Counter(self.languages)
        structure = sum(count for (stage, _, _), count in counts.items() if stage == "structure")
        told = []
        if structure >= FEWEST and structure > config.max_reject_share * len(self.languages):
            told.append(f"structure would take {structure} of {len(self.languages)} records")
        for language, total in sorted(before.items()):
            entering = total
            for stage in STAGES:
                reasons = Counter({r: c for (s, l, r), c in counts.items() if s == stage and l == language})
                lost = reasons.total()
                avoidable = lost - sum(reasons[reason] for reason in ASKED_FOR)
                if (
                    stage != "structure"
                    and avoidable >= FEWEST
                    and avoidable > config.max_reject_share * entering
                ):
                    reason = max(reasons, key=lambda reason: (reasons[reason], reason))
                    told.append(
                        f"{stage} would take {lost} of {entering} {language} records, most for {reason}"
                    )
                entering -= lost
            if total >= config.min_kept > entering:
                told.append(f"{language} would be left with {entering} of {total} records")
        return told


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
