"""spBLEU with a SentencePiece model at the place where sacrebleu looks for its own, and without one."""

import socket
import threading

import pytest
import sacrebleu
import sentencepiece
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

from mlx_hybrid.evaluation.evaluate import evaluate
from mlx_hybrid.evaluation.metrics import spbleu
from mlx_hybrid.evaluation.metrics.chrf import intervals, score_directions, sentence_statistics, signature
from mlx_hybrid.evaluation.sets import evaluation_set, from_fields
from mlx_hybrid.report.result_tables import result_tables
from mlx_hybrid.report.tables import joined

REFERENCES = [
    "Nyumba kubwa iko karibu na mto mrefu.",
    "Watoto wanasoma vitabu shuleni.",
    "Mvua itanyesha kesho asubuhi.",
    "Tunakwenda sokoni kununua matunda.",
]
HYPOTHESES = [
    "Nyumba kubwa karibu na mto mrefu.",
    "Mtoto anasoma kitabu shuleni.",
    "Mvua ilinyesha jana asubuhi.",
    "Tunakwenda sokoni kununua matunda.",
]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> bytes:
    """A small SentencePiece model, which cuts words otherwise than spaces do."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text("\n".join([*REFERENCES, *HYPOTHESES] * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "m"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return (folder / "m.model").read_bytes()


@pytest.fixture
def place():
    """Where the model belongs; nothing is there before and after."""
    path = spbleu.tokenizer_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    assert not path.exists()
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that hangs up on whoever asks; the connections it had."""
    calls, server = [], socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            calls.append(connection.recv(1024).split(b"\r\n")[0])
            connection.close()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield calls
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.fixture
def translated(model, tokenizer):
    """A call for the results of `evaluate` on two directions, whatever the models would write."""
    rows = [
        {
            "id": f"{n}-{a}",
            "group": str(n),
            "language": b,
            "source_language": a,
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": reference}],
        }
        for a, b in (("en", "sw"), ("sw", "en"))
        for n, reference in enumerate(REFERENCES)
    ]
    test = evaluation_set(from_fields(rows, "made"))
    return lambda: evaluate(
        {"base": model, "adapted": model}, tokenizer, test, generate=lambda _, prompts: HYPOTHESES * 2
    )


@pytest.mark.parametrize(
    "others", [[], [["Nyumba iko mtoni.", "Watoto shuleni.", "Mvua kesho.", "Kwenda sokoni."]]]
)
def test_it_is_that_of_sacrebleu(pieces, place, others):
    place.write_bytes(pieces)
    columns = [REFERENCES, *others]
    table = sentence_statistics(HYPOTHESES, columns, spbleu.bleu())
    scored = score_directions([("en", "sw")] * 4, list("abcd"), table, seed=0, metric=spbleu.bleu())
    result = intervals([scored], None)["chrf"]
    wanted = sacrebleu.corpus_bleu(HYPOTHESES, columns, tokenize="flores200").score
    assert result.value == pytest.approx(wanted)
    assert result.low < wanted < result.high
    assert wanted != pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, columns).score, abs=1)
    assert "tok:flores200" in signature(spbleu.bleu(), len(columns))


def test_evaluate_gives_it_for_each_direction(pieces, place, translated):
    place.write_bytes(pieces)
    results = translated()
    wanted = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize="flores200").score
    names = results.languages("spbleu")
    assert len(names) == 2
    assert [results.get("spbleu", "adapted", name).value for name in names] == pytest.approx([wanted] * 2)
    assert results.get("spbleu", "adapted").value == pytest.approx(wanted)
    assert results.facts["notes"] == []
    assert "tok:flores200" in results.facts["signatures"]["spbleu"]
    row = next(row for row in result_tables(results)[0].rows if row[0] == "spBLEU, mean over directions")
    assert row[1] == row[2]
    assert row[1].startswith(f"{wanted:.1f} [")
    assert row[3] == "–"


def test_without_it_a_line_says_so_and_the_rest_comes_out(place, proxy, translated):
    results = translated()
    assert proxy == []
    assert results.get("chrf", "base").value > 10
    text = joined(result_tables(results))
    assert text.count("spBLEU") == 1
    assert (
        "spBLEU is left out: its tokenizer is not on this machine; `evaluate --spbleu` fetches it.\n" in text
    )


def test_offline_nothing_is_asked(place, proxy):
    assert spbleu.fetch_tokenizer(offline=True) == "--spbleu: offline nothing is fetched."
    assert proxy == []


def test_a_download_that_fails_is_one_line_and_leaves_nothing(place, proxy):
    told = spbleu.fetch_tokenizer(offline=False)
    assert told.startswith("--spbleu: its tokenizer could not be fetched (")
    assert "\n" not in told
    assert len(proxy) == 1
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("whole", "told"), [(True, ""), (False, "what its address answers is no SentencePiece model")]
)
def test_what_is_fetched_is_kept_when_it_is_a_model(whole, told, pieces, place, monkeypatch, tmp_path):
    (tmp_path / place.name).write_bytes(pieces if whole else b"<html>Log in first</html>")
    monkeypatch.setitem(SPM_MODELS["flores200"], "url", (tmp_path / place.name).as_uri())
    assert told in spbleu.fetch_tokenizer(offline=False)
    assert bool(told) != place.exists()
    if whole:
        assert place.read_bytes() == pieces
        assert spbleu.missing_tokenizer() == spbleu.fetch_tokenizer(offline=True) == ""


def test_a_broken_file_is_said_and_never_used(place):
    place.write_bytes(b"half a file")
    told = spbleu.missing_tokenizer()
    assert told == f"spBLEU is left out: {place.name} in sacrebleu's folder is no SentencePiece model."


def test_sacrebleus_own_variable_says_where(place):
    import os

    assert str(place).startswith(os.environ["SACREBLEU"])
