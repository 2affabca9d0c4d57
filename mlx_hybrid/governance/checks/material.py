"""What a turn is made of: which of it is prose, and which is code, notation, markup, data, a table or a list.

The rules on words are asked of the prose alone. Code that stands in no fence is told by its lines: signs that prose
does not have, in lines that are no sentences.
"""

import json
from typing import NamedTuple

import regex

SIGNED = frozenset("{}<>\\=;|`$_#@~*+[]/^%×÷\n")
FENCED = regex.compile(r"(```|~~~).*?(?:\1|\Z)|`[^`\n]+`", regex.DOTALL)
THOUGHT = regex.compile(r"<(think|thinking|reasoning|scratchpad)>.*?(?:</\1>|\Z)", regex.DOTALL)
FORMULA = regex.compile(
    r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\\begin\{([\w*]+)\}.*?\\end\{\1\}|\$(?=\S)[^$\n]{1,300}?(?<=\S)\$(?!\d)",
    regex.DOTALL,
)
EXPRESSION = regex.compile(
    r"(?<![\p{L}\d])(?:[\d.,]*\d|[a-zA-Z](?![\p{L}])|[()√π∑∫])[\w().,!']{0,12}"
    r"(?:\s*[-–−+*/×÷·^=<>≤≥≈≠→⇒%:|]+\s*(?:[\d.,]*\d|[a-zA-Z](?![\p{L}])|[()√π])[\w().,!']{0,12})+"
)
LINK = regex.compile(
    r"(?:https?|ftp|file)://\S+|www\.\S+|data:[a-z]+/\S+|\S+@[\w-]+\.[\w.-]+|(?<!\S)[~.]{0,2}/[\w./*-]{2,}"
    r"|(?<!\S)[A-Z]:\\\S+|(?<![\w.])[\w-]+(?:\.[\w-]+)+(?:/[^\s\x22'<>)]*|(?<=\.(?:com|org|net|html|py|js|json|txt|csv))(?!\w))"
)
TAG = regex.compile(
    r"</?[a-zA-Z][\w:.-]*(?:\s[^<>]{0,300})?/?>|<!--.*?-->|&(?:[a-zA-Z]{2,8}|#x?[0-9a-fA-F]{1,6});",
    regex.DOTALL,
)
BULLET = regex.compile(r"(?m)^[ \t]*(?:[-*•–▪]|\d{1,3}[.)]|[a-zA-Z][.)]|#{1,6}|>)[ \t]+")
QUOTED = regex.compile(r'"[^"\n]*"|(?<!\w)\'[^\'\n]*\'')
SENTENCE = regex.compile(r"(?:(?<!\S)(?:\p{L}[\p{L}\p{M}’'-]*|\p{N}+)[,:]?[ ]+){5}")
STARTS = regex.compile(
    r"""\s*(?:
    [#]\s*(?:include|define|ifn?def|endif|pragma)\b | //|/\*|\*/|<!--|<\?|[#]!|--\s
    | @[\w.]+(?:\(.*\))?\s*$ | template\s*< | func\s+[\w(] | package\s+\w+\s*;?\s*$
    | type\s+\w+\s+(?:struct|interface|func|map|\[) | using\s+namespace\b
    | from\s+[\w.]+\s+import\b | import\s+(?:[\w.*]+(?:\s+as\s+\w+)?(?:\s*,\s*[\w.]+)*|\{.*|.*\sfrom\s+['"].*);?\s*$
    | (?:async\s+)?def\s+\w+\s*\( | class\s+\w+\s*(?:[:({]|extends|$) | (?:else|try|finally)\s*:?\s*[{]?\s*$
    | (?:SELECT|INSERT\s+INTO|UPDATE|DELETE\s+FROM|CREATE\s+(?:TABLE|INDEX|VIEW)|ALTER\s+TABLE|DROP\s+TABLE|FROM|WHERE
        |(?:(?:LEFT|RIGHT|INNER|OUTER|CROSS)\s+)*JOIN|GROUP\s+BY|ORDER\s+BY|HAVING|LIMIT|VALUES|SET|UNION|WITH)\b
    | (?:[$>%]\s+)?(?:sudo|git|pip3?|npm|npx|yarn|docker|kubectl|curl|wget|chmod|chown|apt|apt-get|brew|mkdir|grep|awk
        |sed|cd|ls|ssh|scp|tar|systemctl|python3?|rm|cp|mv|echo|export)\s+[-\w./"'$~|{]+(?:\s+[-./"'$~|{\w=:<>*]+)*\s*$
    )""",
    regex.VERBOSE,
)
SIGNS = regex.compile(
    r"""[;{}]\s*(?:(?://|[#]).*)?$ | ^\s*[\])}>]+[;,)]*\s*$ | ==(?!\s*$)|!=|=>|->|::|&&|\|\||\+=|-=|\*=|:=|<<|>>|\+\+
    | --\w | \$\{\w|\$[a-z_]\w | \b\w*[a-z0-9]_[a-z0-9]\w* | \b[A-Z]{2,}_[A-Z]\w*
    | \b[a-z]{2,20}(?:[A-Z][a-z0-9]{1,15}){1,4}\b
    | ^\s*["'].*["'][,;+)\]\s]*$
    | \w\.\w+\( | [\w\])]\([^()]*\)\s*[:;,]?\s*$ | ^\s*[\w.\[\]'"]+\s*(?::[^=]{1,60})?=\s*[^\s=]
    | ^\s*(?:return|if|elif|for|while|with|except|case|print|puts|var|let|const|int|float|double|char|bool|string|String
        |public|private|protected|static|void|fn|func|function|struct|enum|module|end|begin)\b.*[(:=\]'"\d]
    | [\])\w][*+?]\$?$ | \\[dwsbDWS.(\[] | \[\^ | \{\d+,?\d*\} | ^\s*[.\#]?[\w-]+\s*\{ | ^\s*[\w-]+\s*:\s*[^:]*;\s*$""",
    regex.VERBOSE,
)
ROW = regex.compile(r"\s*\|.*\||[^\t\n]+(?:\t[^\t\n]*){2,}$|[\s|+:=-]{5,}$")
CELLS = regex.compile(r"[^,;\n]{0,40}(?:[,;][^,;\n]{0,40}){2,}")
PAIR = regex.compile(r"""\s*["']?[\w.-]+["']?\s*:\s*(?:["'\[{].*|[\d.+-]+|true|false|null|None)?,?\s*$""")
FIGURES = regex.compile(r"(?=.*\d)(?=.*[\[\](){}=+*/^<>×÷])[\d\s()\[\]{}.,;:=+*/^<>|%×÷·√π−-]+")
ELEMENT = regex.compile(r"\s*<[/!?a-zA-Z][^\n]*>\s*")
ESCAPED = regex.compile(r"""\\.|"[^"\n]*"|'[^'\n]*'|\[\^?[^\]\s]*\]""")
SOME, MOSTLY = 0.3, 0.6  # shares of lines that are code from which the short ones beside it are, and all
STRANGE = regex.compile(r"([#@~&|!$%^*])(?!\1)[#@~&|!$%^*\\]")  # signs that nobody writes beside one another
BRACKETS = {")": "(", "]": "[", "}": "{"}
PAGE = regex.compile(
    r"html|xml|css|svg|jsx|react|angular|vue|markup|web ?(?:page|site)|\btags?\b|webseite|网页|ページ|страниц|</?\w+>",
    regex.IGNORECASE,
)


class Made(NamedTuple):
    """`prose` is the words alone, tags still in them; `kinds` names the materials that there are."""

    prose: str
    kinds: frozenset[str] = frozenset({"prose"})

    @property
    def words(self) -> str:
        """The prose without its tags."""
        return TAG.sub(" ", self.prose) if "<" in self.prose or "&" in self.prose else self.prose


def made_of(text: str) -> Made:
    """Split a text into its materials. Pure; most prose is told by the signs that it has not."""
    if SIGNED.isdisjoint(text) and not STARTS.match(text):
        return Made(text)
    kinds = set()

    def take(kind: str, pattern: regex.Pattern, prose: str) -> str:
        left, count = pattern.subn(" ", prose)
        if count:
            kinds.add(kind)
        return left

    if is_data(text):
        return Made("", frozenset({"data"}))
    prose = take("code", FENCED, text)
    formed = is_formed(prose)
    prose = LINK.sub(" ", take("notation", FORMULA, prose) if formed else prose)
    if formed:
        prose = "\n".join(prose_lines(prose.split("\n"), kinds))
        prose = take("notation", EXPRESSION, prose)
    prose = take("list", BULLET, prose)
    if TAG.search(prose):
        kinds.add("markup")
    if regex.search(r"\p{L}", prose):
        kinds.add("prose")
    return Made(prose, frozenset(kinds))


def is_data(text: str) -> bool:
    """Whether all of it is JSON, or each line of it is."""
    bare = text.strip()
    if bare[:1] not in ("{", "[") or bare[-1:] not in ("}", "]"):
        return False
    for part in ([bare], bare.split("\n")):
        try:
            if all(isinstance(json.loads(row), dict | list) for row in part):
                return True
        except (ValueError, RecursionError):
            continue
    return False


def is_formed(text: str) -> bool:
    """Whether signs stand in it as somebody writes them: in lines, or the brackets close, or the letters make words.

    Of symbols at random neither holds.
    """
    if text.count("\n") >= 3:
        return True
    if len(STRANGE.findall(text)) >= 3:
        return False
    letters = regex.findall(r"\p{L}+", text)
    if letters and sum(map(len, letters)) >= 3 * len(letters):
        return True
    opened: list[str] = []
    plain = ESCAPED.sub("", text)
    for sign in plain:
        if sign in "([{":
            opened.append(sign)
        elif sign in BRACKETS and (not opened or opened.pop() != BRACKETS[sign]):
            return False
    return not opened


def prose_lines(lines: list[str], kinds: set[str]) -> list[str]:
    """The lines with those of code, data and tables made empty."""
    told, before = [], ""
    if sum(bool(ELEMENT.fullmatch(line)) for line in lines) >= max(3, len(lines) / 2):
        kinds.add("code")  # a page, or a component of one
        lines = [line for line in lines if not ELEMENT.fullmatch(line)]
    for line, cells in zip(lines, in_columns(lines)):
        told.append(cells or kind_of(line, before))
        before = told[-1] if line.strip() else before
    kinds.update(filter(None, told))
    written = [kind for kind, line in zip(told, lines) if line.strip()]
    share = sum(map(bool, written)) / max(len(written), 1)
    if share > MOSTLY and len(written) > 2:
        return []
    some = "code" in told and share > SOME
    return [
        line if not kind and not (some and not SENTENCE.search(line)) else ""
        for kind, line in zip(told, lines)
    ]


def kind_of(line: str, before: str) -> str:
    """`code`, `data`, `table`, or nothing for prose; a line without signs goes with the code `before` it."""
    bare = line.strip()
    if not bare:
        return ""
    if ROW.match(line):
        return "table"
    if STARTS.match(line):
        return "code"
    if FIGURES.fullmatch(QUOTED.sub("0", bare.split(" #")[0])):
        return "notation"
    if SENTENCE.search(QUOTED.sub("", bare)):
        return "code" if before == "code" and bare[0] in "#*" else ""
    if PAIR.match(line):
        return "data"
    if SIGNS.search(TAG.sub("", line)) or (bare[0] in "[{(" and bare[-1] in "]}),"):
        return "code"
    return before if before == "code" and (line[0] in " \t" or bare[0] == "#") else ""


def in_columns(lines: list[str]) -> list[str]:
    """`table` for each of three or more lines on end with as many short cells between commas, two or more."""
    counts = [line.count(",") + line.count(";") if CELLS.fullmatch(line) else 0 for line in lines]
    found, start = [""] * len(lines), 0
    for place in range(1, len(lines) + 1):
        if place == len(lines) or counts[place] != counts[start]:
            if counts[start] and place - start >= 3:
                found[start:place] = ["table"] * (place - start)
            start = place
    return found
