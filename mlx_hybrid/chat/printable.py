"""Model output made safe for a terminal: escape sequences and control characters taken out, as it streams."""

ESCAPE = "\x1b"
KEPT = "\n\t"
STRING_STARTS = "]PX^_"  # OSC, DCS, SOS, PM, APC: run to BEL or ST (ECMA-48, 5.6)
STRING_ENDS = "\x07\x9c\x18\x1a\n"  # a newline too: an unfinished one must not swallow the rest of an answer
C1_STARTS = {"\x9b": "csi"} | dict.fromkeys("\x9d\x90\x98\x9e\x9f", "string")
FINAL = {"csi": "\x40", "intermediate": "\x30"}  # from here to ~ a character ends its sequence


class Printable:
    """Filters text piece by piece; a sequence split between pieces is still seen whole."""

    def __init__(self) -> None:
        self.state = "text"

    def __call__(self, piece: str) -> str:
        return "".join(kept for character in piece if (kept := self.filter(character)))

    def filter(self, character: str) -> str:
        """The character, or nothing where it is control or part of a sequence."""
        state, self.state = self.state, "text"
        if character == ESCAPE:
            self.state = "string_escape" if state == "string" else "escape"
            return ""
        if state == "string":
            self.state = "text" if character in STRING_ENDS else "string"
            return "\n" if character == "\n" else ""
        if state == "string_escape" and character == "\\":
            return ""
        if state in ("escape", "string_escape"):
            if character == "[" or character in STRING_STARTS:
                self.state = "csi" if character == "[" else "string"
                return ""
            state = "intermediate"
        if state in FINAL and "\x20" <= character <= "\x7e":
            self.state = state if character < FINAL[state] else "text"
            return ""
        self.state = C1_STARTS.get(character, "text")
        return character if self.state == "text" and (character in KEPT or not is_control(character)) else ""


def is_control(character: str) -> bool:
    """C0, DEL and C1, and the line separators that some terminals take for one."""
    return character < "\x20" or "\x7f" <= character <= "\x9f" or character in "\u2028\u2029"
