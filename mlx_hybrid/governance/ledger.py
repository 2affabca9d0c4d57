"""What is remembered of every record while the rest is let go, and the stages that look at all of them at once."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks.translations import check_pairs
from mlx_hybrid.governance.duplicates.minhash import ngram_of
from mlx_hybrid.governance.duplicates.near import find_near_duplicates
from mlx_hybrid.governance.inspection import Inspection, read_said
from mlx_hybrid.governance.rules import ASKED_FOR, RULES, STAGES, Decision, Finding, active_stages, in_force

FEWEST = 5  # losses below this are told, not stopped for: a share of three records says nothing
Counts = Counter[tuple[str, str, str]]


class Ledger:
    """What is left of every record, in order; about 700 bytes and the normalised text for each.

    `sources` tells the files they came from. Once all is decided, `counts` says how many records each (stage, language,
    reason) took, what stays being under ("kept", language, ""), and `alarms` which language would lose too much.
    """

    def __init__(self, config: GovernanceConfig, sources: Sequence[dict[str, Any]] = ()) -> None:
        self.config, self.sources = config, sources
        self.stages, self.rules = active_stages(config), in_force(config.rules)
        self.items: list[Inspection] = []
        self.counts: Counts = Counter()
        self.alarms: list[str] = []

    def add(self, items: list[Inspection]) -> None:
        """Append consecutive records."""
        for item in items:
            for name in ("path", "language", "licence", "shape"):
                setattr(item, name, sys.intern(getattr(item, name)))
        self.items += items

    def kept(self) -> Iterator[Inspection]:
        return (item for item in self.items if item.decision is None)

    @property
    def reasons(self) -> dict[str, int]:
        """How many records were set aside for each reason, the commonest first."""
        return dict(Counter(item.decision.reason for item in self.items if item.decision).most_common())

    def decide(self) -> None:
        """Run the stages that compare records, and count."""
        translations = [item for item in self.kept() if item.pair]
        for item, finding in zip(translations, check_pairs([item.pair for item in translations])):
            item.reject(self.rules, "parallel", finding)
            item.flags += item.pair.flags
        if "exact" in self.stages and "exact_dup" in self.rules:
            decide_exact(self.kept())
        by_language = defaultdict(list)
        for item in self.kept() if "near" in self.stages else ():
            by_language[item.language].append(item)
        for language, items in by_language.items():
            if "near_dup" in self.rules:
                decide_near(items, ngram_of(language), self.config.near_threshold)
            flag_conflicts([item for item in items if item.decision is None])
        for item in self.kept():
            item.flags = tuple(flag for flag in item.flags if flag.reason in self.rules)
        self.counts = count(self.items)
        self.alarms = list(self.find_alarms())

    def find_alarms(self) -> Iterator[str]:
        """Languages that one stage would take too much of, each as a sentence."""
        lost: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        structure = Counter[str]()
        for (stage, language, reason), number in self.counts.items():
            lost[stage, language][reason] = number
            structure += {reason: number} if stage == "structure" else {}
        if self.is_too_much(structure.total(), len(self.items)):
            yield f"structure would take {structure.total()} of {len(self.items)} records, {told(structure)}"
        for language, total in sorted(Counter(item.language for item in self.items).items()):
            left = total
            for stage in STAGES:
                reasons = lost[stage, language]
                avoidable = sum(reasons[reason] for reason in reasons if reason not in ASKED_FOR)
                if stage != "structure" and self.is_too_much(avoidable, left):
                    taken = f"{stage} would take {reasons.total()} of {left} {language} records"
                    yield f"{taken}, {told(reasons)}"
                left -= reasons.total()
            if total >= self.config.min_kept > left:
                yield f"{language} would be left with {left} of {total} records"

    def is_too_much(self, lost: int, of: int) -> bool:
        return lost >= FEWEST and lost > self.config.max_reject_share * of


def told(reasons: Counter[str]) -> str:
    """Which rule takes how many records, what it catches, and what keeps them."""
    parts = []
    for reason, number in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        catches = f": {RULES[reason].catches}; --rule {reason}=off keeps them" if reason in RULES else ""
        parts.append(f"{reason} ({number}{catches})")
    return f"most for {', '.join(parts)}"


def count(items: Iterable[Inspection]) -> Counts:
    """How many records there are of each (stage, language, reason), what is kept first, then in the stages' order."""
    found = Counter((*(item.decision or ("kept", ""))[:2], item.language) for item in items)

    def order(key: tuple[str, str, str]) -> tuple[int, str, str]:
        stage, reason, language = key
        return STAGES.index(stage) if stage in STAGES else -1, language, reason

    return Counter({(key[0], key[2], key[1]): found[key] for key in sorted(found, key=order)})


def decide_exact(items: Iterator[Inspection]) -> None:
    first: dict[bytes, Inspection] = {}
    for item in items:
        earlier = first.setdefault(item.exact, item)
        if earlier is not item:
            item.decide(Decision("exact", "exact_dup", f"same as {earlier.where}", earlier.where))


def decide_near(items: list[Inspection], n: int, threshold: float) -> None:
    """Of the records of one language take those that repeat an earlier one; flag those that a guard let stand."""
    sketches = [item.sketch for item in items]
    found = find_near_duplicates(lambda i: read_said(items[i].said), sketches, n, threshold)
    for i, earlier, similarity, guard in found:
        name = items[earlier].where
        if guard:
            items[i].flags += (Finding("near_dup_kept", f"{name}: {similarity}, but {guard}"),)
        else:
            items[i].decide(Decision("near", "near_dup", f"near_dup of {name}, {similarity}", name))


def flag_conflicts(items: list[Inspection]) -> None:
    """Flag records whose question, with the tools, stood before with another answer, and the first that it stood in."""
    first: dict[tuple[bytes, bytes], tuple[int, list[bytes]]] = {}
    conflicts: dict[int, int] = {}
    for index, item in enumerate(items):
        prompt, *answer, tools, _ = item.said.split(b"\0")  # the answer with label and calls
        earlier, other = first.setdefault((prompt, tools), (index, answer)) if prompt else (index, answer)
        if answer != other:
            conflicts[index] = earlier
            conflicts.setdefault(earlier, index)
    for index, other in conflicts.items():
        items[index].flags += (Finding("prompt_conflict", f"{items[other].where} answers otherwise"),)
