"""Structured logs: one JSON object per line."""

import json
import logging
import sys

from millstream_coordinator.operation.logs import JsonLines


def record(**extra: object) -> logging.LogRecord:
    logger = logging.getLogger("millstream_coordinator.worker")
    return logger.makeRecord(
        logger.name, logging.INFO, "f.py", 1, "group %s: %s", ("g", "joined"), None, extra=extra
    )


def test_a_record_is_one_object_with_what_was_attached() -> None:
    line = JsonLines().format(record(event="joined", group="g", facts={"member": "w\n1"}))

    told = json.loads(line)
    assert "\n" not in line
    assert told.pop("at").endswith("+00:00")
    assert told == {
        "level": "info",
        "logger": "millstream_coordinator.worker",
        "message": "group g: joined",
        "event": "joined",
        "group": "g",
        "facts": {"member": "w\n1"},
    }


def test_what_json_has_no_form_for_is_told_as_text() -> None:
    assert json.loads(JsonLines().format(record(error=ValueError("odd"))))["error"] == "odd"


def test_a_traceback_is_on_the_same_line() -> None:
    one = record()
    try:
        int("odd")
    except ValueError:
        one.exc_info = sys.exc_info()

    line = JsonLines().format(one)

    assert "\n" not in line
    assert "ValueError: invalid literal" in json.loads(line)["error"]
