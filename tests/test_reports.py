"""conftest.py makes the reports of other tests safe to send between processes."""

import json

import pytest


def test_half_characters_can_be_sent_between_processes(request: pytest.FixtureRequest) -> None:
    sections = [("Captured log call", "a\udcff")]
    report = pytest.TestReport("test_a.py::test", ("test_a.py", 1, "test"), {}, "failed", "\ud800!", "call", sections)
    sent = request.config.hook.pytest_report_to_serializable(config=request.config, report=report)
    assert (sent["longrepr"], sent["sections"][0][1]) == ("\\ud800!", "a\\udcff")
    assert json.dumps(sent, ensure_ascii=False).encode("utf-8")
