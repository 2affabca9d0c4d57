import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.benchmarks.questions import chosen_variants
from mlx_hybrid.evaluation.benchmarks.variants import VARIANTS, apply_variant
from mlx_hybrid.evaluation.sets import EvaluationSet
from mlx_hybrid.records.record import Record

SENTENCES = {
    "eng_Latn": "The Café on Thursday served naïve customers without complaint.",
    "deu_Latn": "Die Straße führt über grüne Hügel; Äpfel und Öl sind schön.",
    "tur_Latn": "Işık İstanbul'da kırmızı ılık çayı içti.",
    "vie_Latn": "Hòa bình và thuỷ triều khoẻ mạnh, đường về nhà quý giá.",
    "yor_Latn": "Ọmọ náà lọ sí ilé ìwé ní àárọ̀ yìí.",
    "hau_Latn": "Ƙasar ta ɗauki matakin gaggawa domin ɓarna.",
    "rus_Cyrl": "Ёлка стояла посреди большой комнаты.",
    "ell_Grek": "Η Αθήνα είναι μεγάλη πόλη με ωραία μουσεία.",
    "arb_Arab": "ذهبتُ إلى المدرسة في أول يوم وقابلت صديقي على الطريق.",
    "urd_Arab": "میں آج صبح بازار گیا تھا اور کتابیں خریدیں۔",
    "hin_Deva": "ज़रूरी फ़ाइल सड़क पर पड़ी थी और लड़का चला गया।",
    "amh_Ethi": "ተማሪዎቹ ትናንት ወደ ትምህርት ቤት ሄዱ።",
    "tha_Thai": "เมื่อวานนี้ฉันไปตลาดกับเพื่อน",
    "zho_Hans": "2024年，他在ABC公司工作了3年(全职)。",
}
EXPECTED = {
    ("no-diacritics", "eng_Latn"): "The Cafe on Thursday served naive customers without complaint.",
    ("no-diacritics", "yor_Latn"): "Omo naa lo si ile iwe ni aaro yii.",
    ("no-diacritics", "hau_Latn"): "Kasar ta dauki matakin gaggawa domin barna.",
    ("umlaut-spelling", "deu_Latn"): "Die Strasse fuehrt ueber gruene Huegel; Aepfel und Oel sind schoen.",
    ("dotless-i", "tur_Latn"): "Işik Istanbul'da kirmizi ilik çayi içti.",
    ("lower", "tur_Latn"): "ışık istanbul'da kırmızı ılık çayı içti.",
    ("upper", "tur_Latn"): "IŞIK İSTANBUL'DA KIRMIZI ILIK ÇAYI İÇTİ.",
    ("tone-place", "vie_Latn"): "Hoà bình và thủy triều khỏe mạnh, đường về nhà quý giá.",
    ("no-tone", "vie_Latn"): "Hoa binh va thuy triêu khoe manh, đương vê nha quy gia.",
    ("no-tone", "yor_Latn"): "Ọmọ naa lọ si ile iwe ni aarọ yii.",
    ("no-tonos", "ell_Grek"): "Η Αθηνα ειναι μεγαλη πολη με ωραια μουσεια.",
    ("no-nukta", "hin_Deva"): "जरूरी फाइल सडक पर पडी थी और लडका चला गया।",
    ("alef", "arb_Arab"): "ذهبتُ الى المدرسة في اول يوم وقابلت صديقي على الطريق.",
    ("ya", "arb_Arab"): "ذهبتُ إلي المدرسة في أول يوم وقابلت صديقي علي الطريق.",
    ("ta-marbuta", "arb_Arab"): "ذهبتُ إلى المدرسه في أول يوم وقابلت صديقي على الطريق.",
    ("no-harakat", "arb_Arab"): "ذهبت إلى المدرسة في أول يوم وقابلت صديقي على الطريق.",
    ("full-width", "zho_Hans"): "２０２４年，他在ＡＢＣ公司工作了３年（全职）。",
}
PAIRS = [(name, code) for code in SENTENCES for name, own in VARIANTS.items() if own.applies_to(code)]


@pytest.mark.parametrize(("name", "language"), EXPECTED)
def test_spelling(name, language):
    assert apply_variant(name, SENTENCES[language], language) == EXPECTED[name, language]


@pytest.mark.parametrize(("name", "language"), PAIRS)
def test_words_stay_and_a_second_time_changes_no_rule(name, language):
    text = SENTENCES[language]
    changed = apply_variant(name, text, language)
    assert len(changed.split(" ")) == len(text.split(" "))
    if name not in ("keyboard", "tatweel", "tone-place"):
        assert apply_variant(name, changed, language) == changed


@given(st.text(), st.sampled_from(PAIRS), st.integers(0, 9))
def test_any_text_gives_one_text_by_seed(text, pair, seed):
    name, language = pair
    changed = apply_variant(name, text, language, seed=seed)
    assert changed == apply_variant(name, text, language, seed=seed)
    if name in ("nfd", "nfc"):
        assert unicodedata.normalize("NFC", changed) == unicodedata.normalize("NFC", text)
    if name == "full-width":
        assert unicodedata.normalize("NFKC", changed) == unicodedata.normalize("NFKC", text)


def test_tone_place_is_its_own_inverse():
    text = SENTENCES["vie_Latn"]
    assert apply_variant("tone-place", apply_variant("tone-place", text, "vie_Latn"), "vie_Latn") == text


def test_a_tatweel_is_all_that_is_added():
    text = " ".join([SENTENCES["arb_Arab"]] * 5)
    changed = apply_variant("tatweel", text, "arb_Arab", seed=1)
    assert changed != text
    assert changed.replace("\u0640", "") == text


@pytest.mark.parametrize("language", ["eng_Latn", "rus_Cyrl", "amh_Ethi"])
def test_keyboard_noise_is_light_and_follows_the_seed(language):
    text = " ".join([SENTENCES[language]] * 20)
    once, again, other = (apply_variant("keyboard", text, language, seed=seed) for seed in (1, 1, 2))
    assert once == again != other
    pairs = [(a, b) for a, b in zip(text.split(), once.split()) if a != b]
    assert 0 < len(pairs) < 0.12 * len(text.split())
    for before, after in pairs:
        assert sum(((Counter(before) - Counter(after)) + (Counter(after) - Counter(before))).values()) <= 3


def test_every_variant_has_a_language_and_unknown_ones_are_named():
    assert {name for name, _ in PAIRS} == set(VARIANTS)
    asked = [Record({"prompt": "?", "completion": "!", "language": "tha_Thai"}, "asked", 1)]
    test = EvaluationSet("classification", "asked", 1, asked)
    with pytest.raises(ConfigError, match='did you mean "umlaut-spelling"'):
        chosen_variants(["umlautspelling"], test)
    with pytest.raises(ConfigError, match='"lower" applies to none of tha_Thai'):
        chosen_variants(["lower"], test)
    assert chosen_variants(["all"], test) == ["nfd", "nfc"]
