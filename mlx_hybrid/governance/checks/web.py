"""Rules for text taken from web pages (`profile: web`); they would reject good short turns, so they are asked for."""

from mlx_hybrid.governance.checks.language import Finding

LEAST_CHARACTERS = 200
LINE_ENDS = 0.12
ENDS = tuple(".!?…。！？؟।॥۔።՝:;\"'»”’)】」")
SHORT_LINES = 0.67
REPEATED_LINES = 0.3
BOILERPLATE = (
    "lorem ipsum",
    "javascript is disabled",
    "enable javascript",
    "cookie policy",
    "all rights reserved",
)


def check_page(text: str) -> list[Finding]:
    """Line-wise rules of page text: too short, few sentence ends, mostly short or repeated lines, boilerplate.

    After Penedo et al. 2024 (FineWeb, arXiv 2406.17557) and Rae et al. 2021 (arXiv 2112.11446), without word counts
    and stop words, which scripts without spaces and small languages do not have.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    found = []
    if len(text) < LEAST_CHARACTERS:
        found.append(Finding("page_short", f"{len(text)} characters"))
    ended = sum(line.endswith(ENDS) for line in lines) / len(lines)
    if ended < LINE_ENDS:
        found.append(Finding("line_ends", f"{ended:.2f} of the lines end a sentence"))
    short = sum(len(line) <= 30 for line in lines) / len(lines)
    if len(lines) > 3 and short > SHORT_LINES:
        found.append(Finding("short_lines", f"{short:.2f} of the lines are short"))
    repeated = 1 - sum(len(line) for line in set(lines)) / sum(len(line) for line in lines)
    if repeated > REPEATED_LINES:
        found.append(Finding("repeated_lines", f"{repeated:.2f} of the text is repeated lines"))
    said = text.lower()
    phrase = next((phrase for phrase in BOILERPLATE if phrase in said), None)
    if phrase and len(text) < 1500:
        found.append(Finding("boilerplate", f'"{phrase}"'))
    return found
