"""What is looked for before the patterns, what is remembered, and code that repeats itself by nature."""

import unicodedata

import pytest
import regex
from ftfy import badness
from governance.conftest import govern_records
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks.characters import MAY_BE_BAD, Batch, letters_only
from mlx_hybrid.governance.checks.grams import normalise
from mlx_hybrid.governance.rules import CUES, MAY_BE, for_short, patterns
from mlx_hybrid.records.record import Record

ROOMS = {room: vars(patterns(room)) for room in ("material", "quality", "mojibake", "personal")}
# Each sign that patterns are looked for behind, with their room and names; brackets, pairs and misread signs hide none.
GATES = {
    "signed": "material fenced formula tag element",
    **{
        name: f"material {name}"
        for name in ("fenced", "formula", "link", "expression", "bullet", "row", "signs")
    },
    "separator": "quality separator",
    "chat_marks": "quality chat_marks marks_alone",
    "markup": "quality html",
    "lost": "mojibake lost",
    "number_or_at": "personal phone card iban email seven_digits",
    **{name: f"personal {name}" for name in ("named", "email", "ipv4", "ipv6", "iban", "card")},
}
CATEGORIES = "".join(badness.MOJIBAKE_CATEGORIES.values())
PIECES = [
    *"aZ 1\n\t.,:;|`~$\\@/?#<>[](){}=+-*&'\"é",
    "the old house by the sea",
    "```",
    "http://",
    "3 + 4",
    "- ",
    "12",
]
PIECES += [
    "0041 0061;",
    "x_y",
    "</s>",
    "10.0.0.1",
    "2001:db8::1",
    "DE89",
    "4111 1111 1111 1111",
    "sk_live_aaaa",
    "- [x] ",
]
PIECES += [
    "п1 % п2",
    "п1",
    " ^ п_",
    "घर",
    "FACE;",
    "۱۲",
    "中文",
    "é×",
    "Ж?ж",
    "ж@я.рф",
    "：",
    "№ 5",
    "<b>",
    "&nbsp;",
]
PIECES += [
    "password",
    "passwort",
    "пароль",
    "client secret",
    "api key",
    "f(x):",
    "if x:",
    "SELECT a",
    " | ",
    "def f(",
    "e\\(x\\)",
]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("п1 % п2")
@example("FACE;")
def test_no_pattern_finds_what_the_signs_before_it_hide(text):
    for name, (room, *names) in ((name, told.split()) for name, told in GATES.items()):
        sign = getattr(MAY_BE, name)
        for pattern in (ROOMS[room][each] for each in names):
            found = text.strip() and pattern.match(text) if name == "row" else pattern.search(text)
            assert not found or sign.search(text.casefold() if name == "named" else text), (name, text)


def test_each_sign_is_known_to_hide_a_pattern_or_none():
    assert {*GATES, "brackets", "paired"} == {*vars(MAY_BE)}


@settings(max_examples=600, deadline=None)
@given(st.text(st.sampled_from("aZ 1" + CATEGORIES), max_size=6))
@example("ГўВЂВ™")
@example("µķ")
@example("ƒa")
def test_signs_that_look_misread_are_shown_to_ftfy(text):
    alone = regex.sub(r"(?:^|(?<=\s))[ÂÃ](?= )", "", text)  # the letter, not a sign of UTF-8
    assert MAY_BE_BAD.search(text) or not badness.is_bad(alone)


@pytest.mark.parametrize("word", CUES["password"].split(", "))
def test_each_word_for_a_password_has_its_sign(word):
    assert MAY_BE.named.search(word.casefold())


def test_short_texts_are_judged_once():
    seen: list[str] = []
    judge = for_short(lambda text, how: seen.append(text) or f"{how} {text}")
    for text in ("Be brief.", "Be brief.", "x" * 5_000, "x" * 5_000):
        assert judge(text, "as") == f"as {text}"
    assert judge("Be brief.", "so") == "so Be brief."
    assert seen == ["Be brief.", "x" * 5_000, "x" * 5_000, "Be brief."]


STUB = "\n".join(
    f"@overload\ndef {name}(\n    x: _ArrayLike,\n    deg: SupportsInt,\n    full: bool = False,\n) -> {kind}: ..."
    for name, kind in zip(("one", "two", "three", "four", "five"), ("int", "float", "str", "list", "None"))
)
TABLE = "\n".join(f"{0x4D0 + 3 * i:X}     {0x4D2 + 5 * i:X}  U" for i in range(40))
SCRIPTS = ("Gujarati", "Oriya", "Kawi", "Makasar", "Balinese", "Limbu", "Tirhuta", "Khojki")
RANGES = "\n".join(
    f"    (0x{i:05x}, 0x{i + 4:05x},),  # {n} Vowel Sign Aa      ..{n} Virama"
    for i, n in enumerate(SCRIPTS * 4)
)
KEYS = "\n".join(f"    '{chr(0x1F470 + i % 9)}{chr(0x1F3FB + i % 5)}\u200d♂️': 7," for i in range(45))
NAMES = 'def load(path):\n    """The tokens are <unk> for others and <s> at first."""\n    return read(path, "<unk>")'
NUMBERS = "\n".join(" 0.6,   0.6,   0.6,   0.6,   0.6," for _ in range(30))
BLOCK = "x = step(x, 1)\nif x > limit:\n    x = limit\nprint(x, limit)\nsave(x, path)\ncount = count + 1\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (STUB, ""),
        (TABLE, ""),
        (RANGES, ""),
        (KEYS, ""),
        (NAMES, ""),
        (NUMBERS, ""),
        (BLOCK * 5, "repetition"),
        ("print(x, limit)\n" * 20, "repetition"),
        (f"{BLOCK}<|im_end|>\n<|im_start|>user", "control_tokens"),
    ],
)
def test_code_that_repeats_itself_is_kept_and_code_that_turns_in_a_circle_is_not(answer, reason):
    turns = [{"role": "user", "content": "Write the function."}, {"role": "assistant", "content": answer}]
    found = govern_records(
        [Record({"messages": turns, "language": "en"}, "t", 1)], GovernanceConfig(max_reject_share=1.0)
    )
    assert [rejection.reason for rejection in found.rejected] == [reason][: bool(reason)]


LETTERS = "aZ.1 \n\u200b\u200d\u0301İΣ中𠀀é😀\ud800" + CATEGORIES.replace("\ufffd", "")
ANY = st.lists(st.text(st.sampled_from(LETTERS), max_size=40), max_size=4)


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_many_texts_at_once_are_read_as_each_by_itself(texts):
    batch = Batch(texts)
    plain = [regex.sub(r"[^\p{L}\p{M}\u200c\u200d]+", " ", text).strip().lower() for text in texts]
    assert letters_only(batch) == plain
    folded = [unicodedata.normalize("NFKC", regex.sub(r"\p{Cf}", "", text)).casefold() for text in texts]
    folded = [text.replace("i\u0307", "i").replace("ı", "i") for text in folded]
    assert normalise(texts) == [regex.sub(r"[^\p{L}\p{M}\p{N}\p{S}]+", " ", text).strip() for text in folded]
