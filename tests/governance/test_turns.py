"""Instruction records: each answer judged by itself and by what it is made of, and what is asked decides too."""

# ruff: noqa: E501 (an answer a line)

import random

import pytest
from governance.conftest import SENTENCES, govern_records, said, text_record, text_records

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks.material import made_of
from mlx_hybrid.records.record import Record

FREE = GovernanceConfig(max_reject_share=1.0)
ENGLISH, SWAHILI, HINDI = (SENTENCES[code] for code in ("eng_Latn", "swh_Latn", "hin_Deva"))
ASKED = "Tell me in a few sentences how the library by the river is run, and for whom it was built."


def told(prompt: str, answer: str, language: str | None = "en", **fields) -> tuple[str, set[str]]:
    """The reason for which a conversation goes, empty where it stays, and its flags."""
    record = Record(
        {"messages": said(user=prompt, assistant=answer), "language": language, **fields}, "chat.jsonl", 1
    )
    result = govern_records([record], FREE)
    reasons = [rejection.reason for rejection in result.rejected]
    return "".join(reasons), {flag.reason for flags in result.flags for flag in flags}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("…", "no_text"), ("\u200b\ufeff", "no_text"), ("?!", "no_text"), ("nan", "placeholder"), ("[deleted]", "placeholder"),
        ("<|im_start|>assistant\nIt is free.<|im_end|>", "control_tokens"), ("[INST] It is free. [/INST]", "control_tokens"),
        ("book book book book book book book book book book", "lang_mismatch"), ("The book is here. " * 9, "repetition"),
        ("kjhsdf qwkejh zmxnbc iuqwye lkjasd poqwei", "gibberish"), ("91837 2231 58201 77120 4410 9913", "low_letter_ratio"),
        ("b" * 45, "lang_mismatch"), ("!" * 45, "no_text"), ("T h e l i b r a r y i s o p e n", "spaced_letters"), (ASKED, "answer_is_prompt"),
        ("<p>It is free.</p><br/><div>Yes</div>&nbsp;", "markup"), ("Sie ist fÃ¼r alle geÃ¶ffnet.", "mojibake"),
        (SENTENCES["deu_Latn"], "lang_mismatch"), (SENTENCES["rus_Cyrl"], "script_mismatch"),
        ("\u3164\u2800", "no_text"), ("None None", "placeholder"),
        ("It is free. [SEP]", "control_tokens"), ("It is.<eot>", "control_tokens"),
        ("0.283 0.172 0.938 0.112 0.772", "low_letter_ratio"),
    ],
)  # fmt: skip
def test_an_answer_that_is_junk_goes_whatever_was_asked(answer, reason):
    assert told(ASKED, answer)[0] == reason


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Is it free?", "Yes."), ("How many?", "42"), ("Which one?", "B"), ("Thanks!", "👍"), ("Who came?", "None of them."),
        ("What does f() return?", "None"), ("6 * 7 + 12345678", "6 * 7 + 12345678 = 12345720"), ("Sort 912, 33 and 4810", "33 912 4810"),
        ("Factor it.", "\\[x^2 - 9 = (x - 3)(x + 3)\\]"), ("2+2?", "<think>\n2+2=4\n</think>\n\n4"),
        ("A loop", "for (int i = 0; i < n; ++i) {\n  a[i] = b[i] + c;\n}"), ("The table", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("A heading", "<Card title={name}>\n  <h1>{text}</h1>\n  <p>{more}</p>\n</Card>"), ("Who?", "<answer>Anna</answer>"),
        ("The settings", '{"a": [1, 2, {"b": null}], "c": true}'), ("Where is it?", "Open Account > Orders > Invoice > PDF."),
        ("Our hosts?", "192.168.10.1, 192.168.10.2, 192.168.10.3, 192.168.10.7, 192.168.10.9"), ("Pi?", "3.141592653589793238462643"),
        ("Born when?", "12.05.1940, 03.06.1941, 01.02.1938, 05.07.1950, 09.08.1961"), ("The postcodes?", "10115, 20095, 50667, 80331, 53111"),
        ("The departments?", "Sales · Marketing · Legal · Finance"), ("Which token ends a BERT input?", "[SEP]"), ("Strict in JavaScript?", "==="),
        ("How does a dog bark?", "Woof woof Woof woof Woof woof woof"), ("The first primes", "2, 3, 5, 7, 11, 13, 17, 19, 23, 29"), ("Its corners", "(0, 0), (5, 0), (5, 5), (0, 5)"),
        ("When?", "8:00–9:00, 9:00–10:00, 10:00–11:00"), ("Everyone loves someone", "∀x (P(x) → ∃y Q(x, y))"), ("2 ** 100", "1267650600228229401496703205376"),
        ("Which formula?", '=IF(SUM(A1:A10)>100,"Yes","No")'), ("Swap them", "sed -E 's/([0-9]+)-([0-9]+)/\\2-\\1/g'"),
        ("Draw a triangle of stars.", "  *\n ***\n*****"), ("SOS in Morse?", "... --- ..."), ("Five random numbers", "8391 2231 5820 7712 4410"),
        ("A page", "<!DOCTYPE html><html><head><title>x</title></head><body><h1>Hi</h1><p>Text</p></body></html>"),
        ("2+2?", "<|begin_of_thought|>\n2+2=4\n<|end_of_thought|>\n4"), ("Did we win?", "Yesssssssssssssssssss"), ("Funny?", "😂" * 15),
        ("Is it late?", "Noooooooooooo!!!!!!!!! 😂😂😂😂😂😂😂😂😂"), ("The pattern", r"^\d{4}-\d{2}(T\d{2}:\d{2})?$"),
    ],
)  # fmt: skip
def test_an_answer_that_is_meant_to_be_so_stays(prompt, answer):
    assert told(prompt, answer)[0] == ""


def test_the_answer_must_be_in_the_declared_language():
    assert told(SWAHILI, ENGLISH, "sw")[0] == "lang_mismatch"
    assert told(ENGLISH, SWAHILI, "sw")[0] == ""
    for prompt, fields in (
        (f"Translate: {SWAHILI}", {}),
        (f"{SWAHILI} Sema hivyo kwa Kiingereza.", {}),
        (SWAHILI, {"languages": {"prompt": "sw", "answer": "en"}}),
        (SWAHILI, {"language": "en", "source_language": "sw"}),
    ):
        assert told(prompt, ENGLISH, **{"language": "sw", **fields})[0] == ""
    for prompt in (f"Translate into Swahili: {ENGLISH}", f"Übersetze auf Swahili: {ENGLISH}"):
        assert told(prompt, ENGLISH, "sw")[0] == "lang_mismatch"  # it was left as it is
        assert told(prompt, SENTENCES["rus_Cyrl"], "sw")[0] == "script_mismatch"
        assert told(prompt, SWAHILI, "sw")[0] == told(prompt, SWAHILI, "en")[0] == ""
    assert told(f"Translate this Swahili text: {SWAHILI}", ENGLISH, "sw")[0] == ""
    assert told(f"Translate from English to Swahili and back: {ENGLISH}", ENGLISH, "sw")[0] == ""
    named = {"languages": {"prompt": "sw", "answer": "en"}, "language": None}
    assert told(SWAHILI, SENTENCES["rus_Cyrl"], **named)[0] == "script_mismatch"


POLISH = "Biblioteka jest otwarta od dziewiątej rano do późnego wieczora w dni powszednie, a w soboty krócej."
DUTCH = "De bibliotheek gaat om negen uur open en sluit laat in de avond op werkdagen, en zaterdag eerder."


@pytest.mark.parametrize(
    ("prompt", "answer", "language"),
    [
        ("Translate into Polish: He switched to English when we met at the library.", POLISH, "en"),
        ("Übersetze ins Polnische: Er antwortete auf Englisch, dass sie um neun öffnet.", POLISH, "en"),
        ("Translate into Polish: In the spring we moved to Germany, near a library.", POLISH, "de"),
        ("Translate into Xhosa: He switched to English when we met at the library.", POLISH, "en"),
        (f"Translate to Germanic runes: {ENGLISH}", POLISH, "de"),
        (f"Translate the Dutch sentence to English and keep the Dutch beside it: {DUTCH}", DUTCH, "en"),
        (f"Переведи с того, что написано на русском, на польский: {SENTENCES['rus_Cyrl']}", POLISH, "ru"),
        ("Terjemahkan ke bahasa Belanda: Perpustakaan buka pada pukul sembilan pagi.", DUTCH, "id"),
    ],
)
def test_a_language_is_translated_into_where_the_instruction_says_so(prompt, answer, language):
    assert told(prompt, answer, language)[0] == ""


@pytest.mark.parametrize(
    "prompt", ["Translate into Swahili: ", "Translate to Swahili: ", "Tafsiri kwa Kiswahili: "]
)
@pytest.mark.parametrize("code", ["eng_Latn", "rus_Cyrl", "fra_Latn", "hin_Deva"])
def test_a_translation_into_the_declared_language_is_in_it(prompt, code):
    assert told(prompt + ENGLISH, SENTENCES[code], "sw")[0] in ("lang_mismatch", "script_mismatch")


def test_comments_beside_code_are_alike_as_its_lines_are_and_the_same_line_again_is_not():
    verbs = ("Adds", "Subtracts", "Multiplies", "Divides", "Shifts", "Masks", "Negates", "Compares")
    lines = [
        f"///  {v} the elements of @a v with those of this.\nvoid do_{v.lower()}(const array<T>&);"
        for v in verbs
    ]
    assert told("The header", "\n".join(lines))[0] == ""
    table = [
        f"0x{n:04x}: 0x{n + 9:04x},     #  LETTER NUMBER {n}, left-right; displayed as it is"
        for n in range(12)
    ]
    assert told("The table", "decoding = {\n" + "\n".join(table) + "\n}")[0] == ""
    assert (
        told("The header", "\n".join([*lines[:1], *["void stop(const array<T>&);  // it stops"] * 12]))[0]
        == "repetition"
    )


DRAWN = random.Random(5)
YEARS = "1990 Mauerfall in Berlin\n1991 Krieg am Golf beginnt\n1992 Vertrag von Maastricht\n1993 Binnenmarkt beginnt"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (YEARS, "lang_mismatch"),
        ("\n".join(f"{n} Париж это столица" for n in range(10, 20)), "script_mismatch"),
        ("\n".join(f"{n} I am so happy now" for n in range(10, 70)), "repetition"),
        ("\n".join(str(DRAWN.randrange(10**7, 10**8)) for _ in range(40)), "no_text"),
        ("\n".join(f"{DRAWN.getrandbits(32):08X}" for _ in range(40)), "lang_mismatch"),
    ],
)
def test_rows_that_begin_with_numbers_are_judged_by_what_follows(rows, reason):
    found = govern_records([text_record(rows, language="en")], FREE).rejected
    assert [rejection.reason for rejection in found] == [reason]
    assert told(ASKED, rows)[0] == reason.replace("no_text", "low_letter_ratio")


CODE = 'def load(path):\n    """\n    The tokens are <unk> and <s>, first.\n    """\n    return read(path, "<s>")\n'
ALARM = "#      " + 48 * "🚨" + "\n#   This file was written by another, do not change it."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            "Run `ls -l` to see. I hope this helps!<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>",
            "control_tokens",
        ),
        ("Use `ls`. [/INST] You are welcome. [INST] And now? [/INST] Nothing.", "control_tokens"),
        (f"{CODE}exit(0) <|im_end|> <|im_start|>user Now write it in Python", "control_tokens"),
        (f"{CODE}exit(0) <|im_end|> And now we can go on from here.", "control_tokens"),
        ("You can use `ls` here " + "!" * 600, "char_run"),
        ("You can use `ls` here " + "?" * 3000, "char_run"),
        ("x = load(path)\nThat is all of it, and I hope it helps you" + "!" * 60, "char_run"),
        ("x = load(path)\nThat is all of it.\nI hope that it helps you.\n" + "!" * 600, "char_run"),
        (CODE, ""),
        (f"{ALARM}\n{CODE}x = '{60 * '!'}'", ""),
        ("It is written so:\n```\n<|im_start|>user\nIs it free?<|im_end|>\n```\nAnd `<s>` comes first.", ""),
    ],
)
def test_what_is_let_pass_in_code_is_not_beside_a_word_of_it(answer, reason):
    assert told("Write the function.", answer)[0] == reason


STEPS = "x = step(x, 1)", "print(x, limit)", "save(x, path)"
TOOLS = ["ls", "cd", "cp", "mv", "rm", "cat", "head", "tail", "sort", "uniq"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("print(x, limit)\n" * 6, "repetition"),
        ("Use `x`. " + " ".join([ENGLISH] * 5), "repetition"),
        ("Use `x`. " + "The book is here. " * 9, "repetition"),
        ("\n".join(DRAWN.choice(STEPS) for _ in range(120)), "repetition"),
        ("\n".join(f"- Use `{tool}` to read it." for tool in TOOLS), ""),
        (
            "\n".join(
                f"Then you run this:\n```\n{tool} a\n```\nThe output:\n```\n{tool}\n```" for tool in TOOLS
            ),
            "",
        ),
    ],
)
def test_lines_of_code_come_again_and_few_lines_do_not_make_a_text(answer, reason):
    assert told("Write the function.", answer)[0] == reason


def test_code_and_addresses_are_in_no_language():
    code = "def add(first, second):\n    return first + second\n\nprint(add(1, 2))"
    assert told(HINDI, code, "hi")[0] == ""
    link = text_record("Soma zaidi: https://example.org/an/article/about/the/weather/of/today", language="sw")
    assert govern_records([link], FREE).rejected == []


@pytest.mark.parametrize(
    ("text", "language", "reason", "flag"),
    [
        ("Mujhe yeh kitab bahut pasand hai aur main ise roz padhta hoon.", "hi", "", "lang_romanised"),
        ("Bügın keşke qaray biz qalağa bardıq, kitaphanada otyrdyq.", "kk_Latn", "", "lang_not_checked"),
        (ENGLISH, "ny", "lang_mismatch", ""),
        (SWAHILI, "ny", "", "lang_not_checked"),
        (ENGLISH, "hi", "lang_mismatch", ""),
        ("Bügın keşke qaray biz qalağa bardıq, kitaphanada otyrdyq.", "kk", "", "lang_not_checked"),
        (
            "Бу сәһәр чохлу инсан ушагларына јемәк вә палтар алмаг үчүн базара ҝетди.",
            "az",
            "",
            "lang_not_checked",
        ),
        ("يَاوْ دَا سَافِي مُتَانِي دَا يَوَا سُنْ تَفِي كَاسُوَا دُونْ سَايَا", "ha", "", "lang_not_checked"),
        ("𞤖𞤢𞤲𞤣𞤫 𞤲𞤣𞤫𞤫 𞤴𞤭𞤥𞤩𞤫 𞤣𞤵𞥅𞤣𞤩𞤫 𞤴𞤢𞤸𞤭𞥅 𞤤𞤵𞥅𞤥𞤮", "ff_Adlm", "", "lang_not_checked"),
        (ENGLISH, "kk", "lang_mismatch", ""),
        (
            "find the way home to the village before the night comes and the rain begins",
            "sw",
            "lang_mismatch",
            "",
        ),
        (SENTENCES["rus_Cyrl"], "az", "lang_mismatch", ""),
        ("Ураааааааааааааааааааааа! Мы победили наконец-то!", "ru", "", ""),
        (
            "Klone ssh://git@the-english-server.example.org:22/home/the-weather-report-of-the-day.git",
            "de",
            "",
            "",
        ),
        ("Siehe docs/governance/the-weather-report/english-people/in-the-market.md", "de", "", ""),
    ],
)
def test_what_the_engine_does_not_know_is_told(text, language, reason, flag):
    result = govern_records([text_record(text, language=language)], FREE)
    assert [rejection.reason for rejection in result.rejected] == [reason][: bool(reason)]
    assert not flag or flag in {one.reason for flags in result.flags for one in flags}


def test_what_a_tool_gives_back_is_not_judged():
    call = {"type": "function", "function": {"name": "shot", "arguments": "{}"}}
    html, logged = "<ul><li>1</li><li>2</li></ul>", "\x1b[31mERROR\x1b[0m"
    for result in ("iVBORw0KGgo" * 20, '[{"a": 1}, {"a": 2}]' * 9, logged, html, ""):
        turns = said(user="Take a picture of the page.", assistant="", tool=result)
        turns[1]["tool_calls"] = [call]
        turns += said(assistant="Here is the picture of it.")
        assert govern_records([Record({"messages": turns, "language": "en"}, "t", 1)], FREE).rejected == []


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("The library opens at nine.", {"prose"}), ("```py\nx = 1\n```", {"code"}), ("SELECT a FROM b WHERE c = 1;", {"code"}),
        ("3 + 4 = 7", {"notation"}), ("So $x = 3$ holds.", {"prose", "notation"}), ('{"a": 1}\n{"a": 2}', {"data"}),
        ("a,b,c\n1,2,3\n4,5,6", {"table"}), ("- one thing\n- another thing", {"prose", "list"}), ("<b>Bold</b>", {"prose", "markup"}),
    ],
)  # fmt: skip
def test_materials(text, kinds):
    assert made_of(text).kinds == kinds


def test_a_contradiction_and_another_fact_are_no_copies():
    rule = "By the rules of the town it is {}allowed to swim in the river after dark, as the sign at the gate says."
    fact = "The capital city of {} is {}, which is also the largest city of the country and the seat of its parliament."
    texts = rule.format(""), rule.format("not "), fact.format("France", "Paris"), fact.format("Peru", "Lima")
    assert govern_records(text_records(texts, language="en"), FREE).rejected == []
    always = "The museum on the river {} lets children under ten in without a {} ticket on public holidays."
    texts = always.format("always", "paid"), always.format("never", "paid"), always.format("always", "unpaid")
    assert govern_records(text_records(texts, language="en"), FREE).rejected == []
    told = "The animal called {} is known for its {}, and people in the villages near the forest tell stories about it."
    pairs = ("fox", "cunning"), ("owl", "wisdom"), ("bee", "work"), ("ox", "strength"), ("ant", "thrift")
    texts = [told.format(*pair) for pair in pairs]
    assert govern_records(text_records(texts, language="en"), FREE).rejected == []
    hidden = text_records([ENGLISH, ENGLISH.replace("opens", "op\u200bens")], language="en")
    assert len(govern_records(hidden, FREE).rejected) == 1


def test_a_page_under_another_date_is_a_copy_and_a_short_record_is_none():
    page = " ".join(list(SENTENCES.values())[:5])
    config = GovernanceConfig(only=("near",), max_reject_share=1.0)
    for text, gone in ((page, 1), (ENGLISH, 0)):
        dated = [f"Printed on {day}. {text}" for day in ("3 May 2021 at 10:10", "17 June 2022 at 10:11")]
        assert len(govern_records(text_records(dated), config).rejected) == gone
    page = "".join(chr(0x4E00 + 37 * n % 2_000) for n in range(300))
    for text, gone in ((page, 1), (page[:60], 0)):
        dated = [f"发布于{day}。{text}" for day in ("2021年5月3日10:15", "2022年6月17日08:40")]
        assert len(govern_records(text_records(dated, language="zh"), config).rejected) == gone


@pytest.mark.parametrize("shots", [2, 8, 16])
def test_few_shot_sets_stay_whole(shots):
    ask = "Read the review of a customer and answer with one word, positive or negative, in lower case. Review: "
    reviews = ["I loved it.", "Broke at once.", "Works well.", "Awful smell.", "Great gift!", "Too small.", "So soft.", "Not for me.",
               "Perfect fit.", "Fine.", "Bad colour.", "It is warm.", "Never again.", "Light and quick.", "Meh.", "Just right."]  # fmt: skip
    for fields in ({}, {"label": "x"}):
        records = [
            Record({"prompt": ask + r, "completion": "positive", **fields}, "d", i)
            for i, r in enumerate(reviews[:shots])
        ]
        assert govern_records(records, GovernanceConfig(only=("exact", "near"))).rejected == []
    ask = "请阅读下面这条由我们网店顾客撰写的评论,判断该顾客是否满意。只用一个词回答,不要加句号。评论:"
    answers = ["好用", "好看", "合身", "很软", "漂亮", "舒服", "很快", "划算"]
    records = [
        Record({"prompt": ask + r, "completion": "积极", "language": "zh"}, "d", i)
        for i, r in enumerate(answers)
    ]
    assert govern_records(records, GovernanceConfig(only=("exact", "near"))).rejected == []


def test_raised_figures_are_no_long_numbers():
    assert "low_letter_ratio" not in told(ASKED, "²²² ³³³ ¹¹¹ ²³² ¹²³")
