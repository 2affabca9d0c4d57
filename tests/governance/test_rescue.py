"""What a person decides: rules off, limits moved, records brought back; folders stay verifiable."""

import json

import pytest
from click.testing import CliRunner
from governance.conftest import SENTENCES, read_jsonl, write_jsonl

import mlx_hybrid
from mlx_hybrid.cli import main
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.governance.folder.changing import rescue
from mlx_hybrid.governance.folder.manifest import verify
from mlx_hybrid.governance.govern import govern_files
from mlx_hybrid.governance.rules import RULES
from mlx_hybrid.records.record import load_records

MENU = "Home | About us | Contact | Log in | Subscribe to our newsletter"
LINES = [
    json.dumps({"text": SENTENCES["eng_Latn"], "language": "en"}),
    '{"text":   "' + MENU + '", "language": "en", "id": "menu-1"}',
    json.dumps({"text": SENTENCES["eng_Latn"], "language": "en", "id": "copy"}),
    "no JSON",
    json.dumps({"prompt": "Which one?", "completion": SENTENCES["deu_Latn"], "id": "other"}),
    json.dumps({"text": MENU.replace("Log", "Sign"), "language": "en", "mail": "jane.roe@example.org"}),
    json.dumps({"text": SENTENCES["fra_Latn"], "language": "fr"}),
]


@pytest.fixture
def out(tmp_path):
    path = write_jsonl(tmp_path / "raw.jsonl", LINES)
    govern_files([path], tmp_path / "out", GovernanceConfig(max_reject_share=1.0))
    return tmp_path / "out"


def test_records_come_back_to_their_places_as_they_were(out):
    before = (out / "kept.jsonl").read_bytes().splitlines()
    assert rescue(out, [], ["menu"])["records"] == {"menu": 2}
    second = {"exact_dup": 1, "mixed_kinds": 1}
    assert rescue(out, ["copy", f"{out.parent / 'raw.jsonl'}:5"], [])["records"] == second
    lines = (out / "kept.jsonl").read_bytes().splitlines()
    assert [line.rpartition(b', "_gov": ')[0].decode() + "}" for line in lines] == [*LINES[:3], *LINES[4:]]
    assert [line for line in lines if b"rescued" not in line] == before
    rows = read_jsonl(out / "kept.jsonl")
    assert rows[1]["_gov"]["flags"] == [{"reason": "rescued", "detail": "menu: 4 separators in a line"}]
    assert len(load_records(out / "kept.jsonl")) == 6
    manifest, report = verify(out), json.loads((out / "report.json").read_text())
    assert (report["kept"], report["rejected"]) == (6, 1)
    assert [row["reason"] for row in report["counts"]] == ["bad_json"]
    assert [note["records"] for note in manifest["rescued"]] == [{"menu": 2}, second]
    assert len(manifest["parents"]) == 2


def test_a_rescued_record_is_redacted_and_renamed_as_others_are(tmp_path):
    rows = [
        {"q": "Who?", "a": f"Ask jane.roe@example.org. {MENU}", "language": "en"},
        {"q": "When does it open, and when does it close?", "a": SENTENCES["eng_Latn"], "language": "en"},
    ]
    path = write_jsonl(tmp_path / "raw.jsonl", rows)
    config = GovernanceConfig(max_reject_share=1.0, redact=True)
    govern_files([path], tmp_path / "out", config, renames=("q=prompt,a=completion",))
    assert rescue(tmp_path / "out", [], ["menu"])["records"] == {"menu": 1}
    row = read_jsonl(tmp_path / "out" / "kept.jsonl")[0]
    assert row["completion"] == f"Ask [EMAIL]. {MENU}"
    assert (row["_gov"]["edits"], row["_gov"]["where"]) == (["redacted"], f"{path}:1")


def test_python_does_what_the_command_does(out):
    assert mlx_hybrid.rescue(out, "menu-1", reasons=["exact_dup", "bad_json"]) == {
        "records": {"menu": 1, "exact_dup": 1},
        "left": [f"{out.parent / 'raw.jsonl'}:4: not JSON: Expecting value at column 1"],
    }


@pytest.mark.parametrize(
    ("ids", "reasons", "kind", "told"),
    [
        ([], ["menus"], ConfigError, 'did you mean "menu"?'),
        ([], ["mojibake"], DataError, "no record was set aside for mojibake; there are bad_json, exact_dup"),
        ([], ["bad_json"], DataError, "is no record that can be trained on"),
        (["nobody"], [], DataError, "is not in rejected.jsonl"),
    ],
)
def test_what_cannot_come_back_is_told_and_changes_nothing(out, ids, reasons, kind, told):
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(kind) as error:
        rescue(out, ids, reasons)
    assert told in str(error.value)
    assert (out / "manifest.json").read_bytes() == before


def test_what_is_asked_to_be_kept_is_kept_and_flagged(tmp_path):
    path, held = write_jsonl(tmp_path / "raw.jsonl", LINES), write_jsonl(tmp_path / "held.jsonl", [LINES[0]])
    keep = ("menu-1", "copy", f"{path}:1")
    config = GovernanceConfig(max_reject_share=1.0, keep=keep, against=(str(held),))
    govern_files([path], tmp_path / "out", config)
    notes = [row["_gov"] for row in read_jsonl(tmp_path / "out" / "kept.jsonl")]
    told = {n["where"][-1]: [flag["detail"].split(":")[0] for flag in n.get("flags", [])] for n in notes}
    assert told == {"1": ["eval_leak"], "2": ["menu"], "3": ["eval_leak", "exact_dup", "near_dup"], "7": []}
    with pytest.raises(ConfigError, match='no record has the id or the place "nobody"'):
        govern_files([path], None, GovernanceConfig(keep=("nobody",)))


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_commands(out):
    raw = out.parent / "raw.jsonl"
    free = ("--dry-run", "--max-reject-share", 1)
    assert "menu  " in run("govern", raw, *free).output
    dry = run("govern", raw, *free, "--rule", "menu=off", "--rule", "long_token.limit=80")
    assert "menu  " not in dry.output
    assert "--rule menu=off --rule long_token.limit=80" in dry.stdout.splitlines()[-1]
    for words, told in (
        (("govern", raw, "--dry-run", "--rule", "menus=off"), 'unknown rule "menus"; did you mean "menu"?'),
        (("govern", raw, "--dry-run", "--rule", "menu"), "write RULE=off or RULE.limit=NUMBER"),
        (("finetune", "--data", raw, "--dry-run", "--rule", "menus=off"), 'did you mean "menu"?'),
        (("rules", "menus"), 'did you mean "menu"?'),
        (("rescue", out), "name the records"),
        (("rescue", out, "--reason", "menus"), 'did you mean "menu"?'),
    ):
        result = run(*words)
        assert (result.exit_code, told in result.output) == (2, True), result.output
    done = run("rescue", out, "menu-1")
    assert done.stdout.splitlines() == [
        "Back in kept.jsonl: 1 from menu.",
        f"mlx-hybrid finetune --data {out}/kept.jsonl",
    ]
    assert run("govern", "verify", out).exit_code == 0
    assert run("rescue", out, "nobody").exit_code == 3


def test_every_rule_is_listed_with_what_it_catches():
    told = run("rules").stdout
    for rule in RULES.values():
        assert f"{rule.name}  {rule.stage}" in told
        assert rule.catches in told
        assert rule.example in told
    assert json.loads(run("rules", "menu", "--json").stdout)[0]["limit"] == 3
