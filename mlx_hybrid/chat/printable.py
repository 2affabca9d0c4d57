"""Model output made safe for a terminal: escape sequences and control characters taken out, as it streams."""

import re

UNSAFE = re.compile(
    r"(?:\x1b\[|\x9b)[ -?]*[@-~]?"  # control sequences (ECMA-48, 5.4)
    # OSC, DCS, SOS, PM, APC (5.6): to BEL or ST; a newline ends one too, or it would swallow the rest of an answer
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x18\x1a\x1b\x9c\n]*(?:\x1b\\|[\x07\x18\x1a\x9c])?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[^\t\n -~\xa0-\u2027\u202a-\U0010ffff]"  # the rest of C0 and C1, DEL, and separators that end a line
)


class Printable:
    """Filters text piece by piece; a sequence split between pieces is still seen whole."""

    def __init__(self) -> None:
        self.held = ""

    def __call__(self, piece: str) -> str:
        text = self.held + piece
        *_, last = [None, *UNSAFE.finditer(text)]
        whole = last.start() if last and last.end() == len(text) else len(text)
        self.held = text[whole:]
        return UNSAFE.sub("", text[:whole])
