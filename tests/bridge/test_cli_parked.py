"""``millstream bridge parked`` as a user runs it, and the document a record is edited in.

On nats-server alone: what the commands call is tried on both servers elsewhere.
"""

import datetime as dt
import json
from pathlib import Path

import pytest
from hypothesis import given

from millstream_bridge import ConfigurationError
from millstream_bridge.model import Record, TimestampType
from millstream_bridge.moving.parked import Parked
from millstream_bridge.operation.parked_document import document, edited
from tests.bridge.moves import a_route, move_all
from tests.bridge.test_cli import arguments, run
from tests.bridge.test_mapping import records
from tests.bridge.test_poison import SMALL, TOO_LARGE
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARKED = Parked(0, 7, "why", dt.datetime(2026, 1, 2, tzinfo=dt.UTC), 5, False)
RECORD = Record(0, 7, 1, TimestampType.CREATE, b"k", b"v", (("h", None),))


async def test_a_parked_record_is_listed_shown_repaired_and_replayed(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [SMALL, TOO_LARGE])
    await move_all(mock.bootstrap, real_nats_server.url, a_route(topic, on_poison="park"))
    options = arguments(mock, real_nats_server, topic)

    listed = run("parked", "ls", *options, "--json")
    assert listed.returncode == 0, listed.stderr
    [found] = json.loads(listed.stdout)["records"]
    assert (found["kafka_partition"], found["offset"], found["is_repaired"]) == (0, 1, False)
    assert "1048576" in run("parked", "ls", *options).stdout
    shown = json.loads(run("parked", "show", "0", "1", *options).stdout)
    assert shown["schema"] == "millstream.bridge.parked/1"
    assert shown["value"]["text"] == TOO_LARGE["value"].decode()

    still = run("parked", "replay", "0", "1", "--yes", *options)
    assert still.returncode == 1
    assert "partition 0 offset 1" in still.stderr
    edit = tmp_path / "edited.json"
    edit.write_text(json.dumps({**shown, "value": {"text": "short"}}))
    assert run("parked", "repair", "0", "1", "--from", str(edit), *options).returncode == 0
    dry = run("parked", "replay", "0", "1", *options)
    assert "--yes" in dry.stdout
    replayed = run("parked", "replay", "0", "1", "--yes", "--json", *options)

    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["seq"] == 3
    assert json.loads(run("parked", "ls", *options, "--json").stdout)["records"] == []
    assert run("parked", "ls", *options).stdout == "no record is parked\n"
    gone = run("parked", "drop", "0", "1", "--yes", *options)
    assert gone.returncode == 2
    assert "offset 1 is not parked" in gone.stderr


@given(records)
def test_a_document_that_was_not_edited_is_the_record(record: Record) -> None:
    parked = PARKED._replace(kafka_partition=record.kafka_partition, offset=record.offset)
    text = json.dumps(document(a_route("flights"), parked, record))

    assert edited(record, text, "file") == record


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "no JSON"),
        ("[]", "none of key"),
        ('{"offset": 7}', "none of key"),
        ('{"offset": 8, "key": null}', "offset 8, not 7"),
        ('{"kafka_partition": 1, "key": null}', "kafka_partition 1, not 0"),
        ('{"key": "k"}', "key is neither"),
        ('{"key": {"text": "a", "base64": "b"}}', "key is neither"),
        ('{"value": {"base64": "?"}}', "value is no base64"),
        ('{"headers": {}}', "headers is no list"),
        ('{"headers": [["a"]]}', "headers is no list"),
        ('{"headers": [["a", 1]]}', "header a is neither"),
        ('{"timestamp_ms": "now"}', "timestamp_ms"),
    ],
)
def test_a_document_that_makes_no_record_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        edited(RECORD, text, "file")


def test_an_edited_document_changes_what_it_names() -> None:
    text = '{"key": null, "value": {"base64": "AP8="}, "headers": [["a", {"text": "b"}]]}'

    assert edited(RECORD, text, "file") == RECORD._replace(
        key=None, value=b"\x00\xff", headers=(("a", b"b"),)
    )
