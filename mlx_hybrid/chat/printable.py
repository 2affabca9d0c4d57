"""Model output made safe for a terminal: escape sequences and control characters taken out, as it streams."""

ESCAPE = "\x1b"
KEPT = "\n\t"
STRING_STARTS = "]PX^_"  # OSC, DCS, SOS, PM, APC: run to BEL or ST (ECMA-48, 5.6)
STRING_ENDS = "\x07\x9c\x18\x1a"
C1_STRINGS = "\x9d\x90\x98\x9e\x9f"


class Printable:
    """Filters text piece by piece; a sequence split between pieces is still seen whole."""

    def __init__(self) -> None:
        self.state = "text"

    def __call__(self, piece: str) -> str:
        return "".join(kept for character in piece if (kept := self.filter(character)))

    def filter(self, character: str) -> str:
        """The character, or nothing where it is control or part of a sequence."""
        if character == ESCAPE:
            self.state = "escape" if self.state != "string" else "string_escape"
            return ""
        return getattr(self, f"in_{self.state}")(character)

    def in_text(self, character: str) -> str:
        if character == "\x9b":
            self.state = "csi"
        elif character in C1_STRINGS:
            self.state = "string"
        elif character in KEPT or not is_control(character):
            return character
        return ""

    def in_escape(self, character: str) -> str:
        if character == "[":
            self.state = "csi"
        elif character in STRING_STARTS:
            self.state = "string"
        elif "\x20" <= character <= "\x2f":
            self.state = "intermediate"
        else:
            self.state = "text"
            return "" if "\x30" <= character <= "\x7e" else self.in_text(character)
        return ""

    def in_csi(self, character: str) -> str:
        if "\x20" <= character <= "\x3f":
            return ""
        self.state = "text"
        return "" if "\x40" <= character <= "\x7e" else self.in_text(character)

    def in_intermediate(self, character: str) -> str:
        if "\x20" <= character <= "\x2f":
            return ""
        self.state = "text"
        return "" if "\x30" <= character <= "\x7e" else self.in_text(character)

    def in_string(self, character: str) -> str:
        """A newline ends it too: an unfinished sequence must not swallow the rest of an answer."""
        if character in STRING_ENDS or character == "\n":
            self.state = "text"
        return "\n" if character == "\n" else ""

    def in_string_escape(self, character: str) -> str:
        self.state = "text"
        return "" if character == "\\" else self.in_escape(character)


def is_control(character: str) -> bool:
    """C0, DEL and C1, and the line separators that some terminals take for one."""
    return character < "\x20" or "\x7f" <= character <= "\x9f" or character in "\u2028\u2029"
