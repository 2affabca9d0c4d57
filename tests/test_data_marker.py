"""A data test is skipped where the data is missing, and may not be skipped where it is there."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MARKED = """
    import pytest

    @pytest.mark.data
    def test_reads(data_root):
        assert data_root.is_dir()

    @pytest.mark.data
    def test_hides():
        pytest.skip("not today")
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.syspath_prepend(TESTS)
    pytester.makeini("[pytest]\nmarkers =\n    data: needs data")
    pytester.makepyfile(MARKED)
    return pytester


def run(project: pytest.Pytester) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "data_marker", "-p", "no:randomly", "-q")


def test_skips_say_why_without_the_folder(project, monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_HYBRID_DATA", str(tmp_path / "nowhere"))
    result = run(project)
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*no development data at *nowhere*"])
    assert result.ret == 0


def test_a_skip_fails_the_session_with_the_folder(project, monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_HYBRID_DATA", str(tmp_path))
    result = run(project)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*a data test was skipped although*not today*"])
    assert result.ret == 1
