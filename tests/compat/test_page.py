"""The table of servers is made of results."""

from pathlib import Path

from tests.compat.__main__ import _results, page
from tests.helpers.versions import VERSIONS


def test_a_row_holds_where_all_of_its_cases_held(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase name="test_a[limits-2.10.26]"/>'
        '<testcase name="test_a[workqueue-2.10.26]"><failure/></testcase>'
        '<testcase name="test_a[limits-2.11.11]"/>'
        '<testcase name="test_a[limits-2.12.8]"><skipped/></testcase>'
        '<testcase name="test_page"/>'
        '<testcase classname="tests.compat.test_bridge" name="test_b[chain-2.10.26]"/>'
        "</testsuite></testsuites>"
    )

    assert _results(report) == {"test_a": {"2.10.26": False, "2.11.11": True}}


def test_the_page_has_a_column_for_each_server_and_titles_for_tests() -> None:
    held = dict.fromkeys(VERSIONS, True)
    results = {"test_members_share_partitions_and_give_them_back": {**held, "2.10.26": False}}

    text = page(results, {version: {"API level": "1"} for version in VERSIONS[:2]})

    assert f"| | {' | '.join(VERSIONS)} |" in text
    assert "| API level | 1 | 1 | - | - | - |" in text
    assert "| Balancing, graceful moves | ✘ | ✔ | ✔ | ✔ | ✔ |" in text
