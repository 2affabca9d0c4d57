"""The table of rules, and what switches them off or moves their limits."""

import pytest
from governance.conftest import SENTENCES, govern_records, text_record

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.governance.rules import RULES, STAGES, in_force

MENU = "Home | About us | Contact | Log in | Subscribe to our newsletter"


def reasons(text: str, **changes) -> list[str]:
    config = GovernanceConfig(rules=changes, max_reject_share=1.0)
    result = govern_records([text_record(text, language="en")], config)
    return [rejection.reason for rejection in result.rejected]


def test_each_rule_has_its_row():
    assert all(rule.stage in STAGES and rule.catches for rule in RULES.values())
    assert all(rule.limit is None or rule.counts for rule in RULES.values())


def test_a_rule_can_be_switched_off():
    assert reasons(MENU) == ["menu"]
    assert reasons(MENU, menu=False) == reasons(MENU, menu="off") == []
    assert reasons(SENTENCES["deu_Latn"]) == ["lang_mismatch"]
    assert reasons(SENTENCES["deu_Latn"], lang_mismatch="off") == []
    assert "exact_dup" not in in_force({"exact_dup": "off", "menu.limit": 5})
    assert in_force({"menu.limit": 5})["menu"] == 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"menus": "off"}, 'did you mean "menu"?'),
        ({"menu": 7}, "menu.limit: a number above 0"),
        ({"mojibake.limit": 7}, "write mojibake: off"),
        ({"menu.limit": -1}, "cannot be -1"),
        ({"menu.size": 3}, "cannot be 3"),
    ],
)
def test_what_is_no_rule_is_told(changes, told):
    with pytest.raises(ConfigError, match=r"governance\.rules") as error:
        in_force(changes)
    assert told in str(error.value)
