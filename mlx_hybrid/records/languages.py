"""Language codes: whatever a record declares, one internal form, ISO 639-3 + ISO 15924 (`swh_Latn`)."""

import re
from functools import lru_cache
from typing import NamedTuple

from mlx_hybrid.errors import nearest


class Language(NamedTuple):
    """An ISO 639-3 code and a script; `declared` tells a script that was written from one that is the usual one."""

    code: str
    script: str
    declared: bool = False

    def __str__(self) -> str:
        return f"{self.code}_{self.script}"


class UnknownLanguage(ValueError):
    """A string that is no language code."""


def words(text: str) -> list[str]:
    return text.split()


# ISO 639-1 and its ISO 639-3, a macrolanguage going to the member that FLORES-200 names.
TWO_LETTERS = dict(
    pair.split(":")
    for pair in words(
        "aa:aar ab:abk ae:ave af:afr ak:aka am:amh an:arg ar:arb as:asm av:ava ay:ayr az:azj ba:bak be:bel bg:bul "
        "bh:bho bi:bis bm:bam bn:ben bo:bod br:bre bs:bos ca:cat ce:che ch:cha co:cos cr:cre cs:ces cu:chu cv:chv "
        "cy:cym da:dan de:deu dv:div dz:dzo ee:ewe el:ell en:eng eo:epo es:spa et:est eu:eus fa:pes ff:fuv fi:fin "
        "fj:fij fo:fao fr:fra fy:fry ga:gle gd:gla gl:glg gn:grn gu:guj gv:glv ha:hau he:heb hi:hin ho:hmo hr:hrv "
        "ht:hat hu:hun hy:hye hz:her ia:ina id:ind ie:ile ig:ibo ii:iii ik:ipk io:ido is:isl it:ita iu:iku ja:jpn "
        "jv:jav ka:kat kg:kon ki:kik kj:kua kk:kaz kl:kal km:khm kn:kan ko:kor kr:knc ks:kas ku:kmr kv:kom kw:cor "
        "ky:kir la:lat lb:ltz lg:lug li:lim ln:lin lo:lao lt:lit lu:lub lv:lvs mg:plt mh:mah mi:mri mk:mkd ml:mal "
        "mn:khk mr:mar ms:zsm mt:mlt my:mya na:nau nb:nob nd:nde ne:npi ng:ndo nl:nld nn:nno no:nob nr:nbl nv:nav "
        "ny:nya oc:oci oj:oji om:gaz or:ory os:oss pa:pan pi:pli pl:pol ps:pbt pt:por qu:quy rm:roh rn:run ro:ron "
        "ru:rus rw:kin sa:san sc:srd sd:snd se:sme sg:sag sh:hrv si:sin sk:slk sl:slv sm:smo sn:sna so:som sq:als "
        "sr:srp ss:ssw st:sot su:sun sv:swe sw:swh ta:tam te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn to:ton "
        "tr:tur ts:tso tt:tat tw:twi ty:tah ug:uig uk:ukr ur:urd uz:uzn ve:ven vi:vie vo:vol wa:wln wo:wol xh:xho "
        "yi:ydd yo:yor za:zha zh:zho zu:zul"
    )
)

# Macrolanguages and retired or alternative codes of ISO 639-3.
MEMBERS = dict(
    pair.split(":")
    for pair in words(
        "ara:arb aze:azj aym:ayr cmn:zho ekk:est fas:pes ful:fuv gug:grn hbs:hrv kau:knc kur:kmr lav:lvs "
        "mlg:plt mon:khk msa:zsm nep:npi nor:nob ori:ory orm:gaz pus:pbt que:quy sqi:als swa:swh uzb:uzn yid:ydd "
        "fil:tgl zlm:zsm din:dik"
    )
)

# Scripts a language is written in, the usual one first; Latn where nothing else is said.
SCRIPTS = {
    code: scripts.split("+")
    for scripts, codes in {
        "Arab": "acm acq aeb ajp apc arb ars ary arz azb ckb glk kas lrc mzn pbt pes pnb prs sdh skr snd uig urd "
        "uzs",
        "Cyrl": "abk ava bak bel bul bxr chu che chv inh kbd kir kom krc kum lez mhr mkd mrj myv mdf oss rue rus sah "
        "tyv udm ukr xal",
        "Cyrl+Latn": "srp tgk tat",
        "Cyrl+Latn+Arab": "kaz",
        "Cyrl+Mong": "khk",
        "Latn+Cyrl": "uzn azj tuk crh bos cnr ron",
        "Latn+Arab": "hau kmr",
        "Deva": "awa bho bpy bih gom hin hne mag mai mar new npi san",
        "Beng": "asm ben mni",
        "Beng+Deva": "bpy",
        "Ethi": "amh tir",
        "Grek": "ell grc",
        "Hebr": "heb hbo ydd",
        "Hans+Hant": "zho wuu gan hak nan hsn",
        "Hant+Hans": "yue lzh",
        "Jpan": "jpn",
        "Kore": "kor",
        "Thai": "tha",
        "Laoo": "lao",
        "Khmr": "khm",
        "Mymr": "mya shn",
        "Tibt": "bod dzo",
        "Geor": "kat xmf",
        "Armn": "hye hyw",
        "Gujr": "guj",
        "Guru+Arab": "pan",
        "Orya": "ory",
        "Sinh": "sin",
        "Taml": "tam",
        "Telu": "tel",
        "Knda": "kan",
        "Mlym": "mal",
        "Thaa": "div",
        "Olck": "sat",
        "Tfng": "taq tzm zgh",
        "Nkoo": "nqo",
        "Cans": "iku cre oji",
        "Yiii": "iii",
    }.items()
    for code in words(codes)
}

# The rest of what FLORES-200 and the two bundled-size engines know; all written in Latin letters.
LATIN = words(
    "ace bjn fuv gaz kac kmb kbp kea kon lij lim lin lmo ltg lua lug luo lus min mos nso nus ayr bam ban bcl bem ceb "
    "cjk dik dyu ewe fij fon fur gla gle glg grn hat ibo ilo ind jav kab kam kik kin knc lit ltz lvs mlt mri nno nob "
    "nya oci pag pap plt quy ron run sag scn smo sna som sot srd ssw sun swh swe szl tgl tpi tsn tso tum twi umb vec "
    "vie war wol xho yor zsm zul als bar cbk dsb hsb diq eml ext frr gcf gcr guw hif ina jbo lat mwl nah nap nds nov "
    "pcm pam pfl pms roh sco swc vep vls zea eng deu fra spa por ita nld afr cat eus dan fin hun est pol ces slk slv "
    "hrv isl fao tur nav epo vol ido ile wln arg ast bre cym cor glv cos fry sme aka kua ndo"
)

# A record in one language of a row is not told from another of the row by a short text.
RELATIVES = [
    set(words(row))
    for row in (
        "zho yue wuu hak nan gan lzh hsn",
        "zsm ind bjn min",
        "arb ary arz aeb apc ajp acm acq ars",
        "hrv bos srp cnr",
        "nob nno",
        "pes prs",
        "swh swc",
        "tgl ceb war",
        "bho hin mag mai awa hne",
        "mar gom",
        "npi new",
        "pan pnb",
        "kmr ckb sdh diq",
        "lvs ltg",
        "xho zul nbl ssw nde",
        "sot nso tsn",
        "kin run",
        "azj azb",
        "uzn uzs",
        "aka twi",
        "fra gcf gcr",
        "heb hbo",
    )
]
KNOWN = frozenset(TWO_LETTERS.values()) | frozenset(SCRIPTS) | frozenset(LATIN) | frozenset(MEMBERS)
UNSPACED = frozenset(words("Hans Hant Hani Jpan Hira Kana Thai Laoo Khmr Mymr Tibt Yiii Java Bali"))
SEEN_AS = {"Hans": ["Hani"], "Hant": ["Hani"], "Jpan": ["Hani", "Hira", "Kana"], "Kore": ["Hang", "Hani"]}
CODE = re.compile(
    r"([a-z]{2,3})(?:[-_]([a-z]{4}))?(?:[-_](?:[a-z]{2}|\d{3}))?(?:[-_][a-z0-9]+)*", re.IGNORECASE
)
TRADITIONAL = re.compile(r"[-_](tw|hk|mo)\b", re.IGNORECASE)


@lru_cache(4096)
def parse_language(text: str) -> Language:
    """`sw`, `swa`, `swh`, `sw-KE`, `sw_Latn`, `swh_Latn`, `zh-Hant-TW` as a Language.

    A three-letter code that is not in the table is taken as ISO 639-3 with an unknown script (`Zyyy`). Raises
    UnknownLanguage with the nearest known code.
    """
    match = CODE.fullmatch(text.strip())
    if not match:
        raise UnknownLanguage(f'"{text}" is no language code; write one as sw, swh or swh_Latn.')
    code, script = match[1].lower(), (match[2] or "").title()
    if len(code) == 2:
        if code not in TWO_LETTERS:
            raise UnknownLanguage(f'"{text}" is no language code; {nearest(code, TWO_LETTERS)}')
        code = TWO_LETTERS[code]
    code = MEMBERS.get(code, code)
    if script in ("Hani", "Zyyy"):
        script = ""
    if not script and code in ("zho", "yue") and TRADITIONAL.search(text):
        script = "Hant"
    return Language(code, script or usual_script(code), bool(script))


def usual_script(code: str) -> str:
    return SCRIPTS[code][0] if code in SCRIPTS else "Latn" if code in KNOWN else "Zyyy"


def scripts_of(code: str) -> frozenset[str]:
    """Scripts of a language as they are seen in text (`Hani` for both Chinese ones); empty when not known."""
    if code not in KNOWN:
        return frozenset()
    return frozenset(seen for script in SCRIPTS.get(code, ["Latn"]) for seen in SEEN_AS.get(script, [script]))


@lru_cache(1024)
def relatives_of(code: str) -> frozenset[str]:
    """The language itself and those that short texts do not tell apart from it."""
    return frozenset({code}).union(*(row for row in RELATIVES if code in row))


def is_unspaced(script: str) -> bool:
    """Whether a script is written without spaces between words."""
    return script in UNSPACED
