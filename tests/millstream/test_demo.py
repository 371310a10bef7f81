"""The demo from end to end, smaller than a user's and with all of its faults."""

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from millstream.demo.flights import PACKAGED, read_flights
from millstream.demo.tracks import Track, encode, follow
from tests.helpers import require
from tests.helpers.kafka import Kafka, await_true, real_kafka
from tests.helpers.servers import REAL, Server
from tests.millstream.demo_run import DEMO_S, SMALL, demo

CHECK = Path(__file__).parents[2] / "examples" / "check_demo.py"
FAULTS = ["kill workers", "start workers", "stop a worker", "kill the bridge", "kill the broker"]

pytestmark = pytest.mark.slow


def play(temporary: Path, *options: str) -> tuple[int, str, str]:
    """Run the demo to its end: exit code and what it printed."""
    with demo(temporary, *SMALL, *options) as running:
        out, err = running.process.communicate(timeout=DEMO_S)
    return running.process.returncode, out, err


def check(kept: Path) -> subprocess.CompletedProcess[str]:
    """Run the independent check, isolated from this project's packages."""
    command = [sys.executable, "-I", "-S", str(CHECK), str(kept), str(PACKAGED)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run with embedded servers kept."""
    place = tmp_path_factory.mktemp("kept")
    code, out, err = play(tmp_path_factory.mktemp("run"), "--seed", "7", "--keep", str(place))
    assert code == 0, out + err
    assert err == ""
    return place


@pytest.fixture(scope="module")
def report(kept: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((kept / "report.json").read_bytes())
    return content


def test_nothing_is_lost_or_out_of_order_and_each_effect_is_applied_once(
    report: dict[str, Any],
) -> None:
    assert report["schema"] == "millstream.demo/1"
    assert report["passed"] is True
    assert all(report["checks"].values())
    assert report["records"] == {
        "produced": 1500, "moved": 1500, "handled": 1500, "without_key": 0
    }  # fmt: skip
    assert (report["lost"], report["out_of_order"]) == (0, 0)
    assert (report["effects"]["applied"], report["effects"]["applied_twice"]) == (1500, 0)
    assert report["aircraft"]["different"] == []


def test_each_fault_took_place_and_met_a_backlog(report: dict[str, Any]) -> None:
    faults = report["faults"]
    assert [fault["name"] for fault in faults] == FAULTS
    assert all(fault["backlog"] > 0 for fault in faults)


def test_two_survivors_take_over_all_partitions_of_three_killed_workers(
    report: dict[str, Any],
) -> None:
    fault = report["faults"][0]
    assert len(fault["victims"]) == 3
    assert sorted(map(len, fault["shares_before"].values())) == [2, 2, 2, 2, 2]
    assert sorted(map(len, fault["shares_after"].values())) == [5, 5]
    moved = sorted(p for victim in fault["victims"] for p in fault["shares_before"][victim])
    assert [takeover["partition"] for takeover in fault["takeovers"]] == moved
    assert all(takeover["owner_before"] in fault["victims"] for takeover in fault["takeovers"])
    assert all(takeover["ms"] > 0 for takeover in fault["takeovers"])


def test_new_workers_get_their_share(report: dict[str, Any]) -> None:
    fault = report["faults"][1]
    assert sorted(map(len, fault["shares_after"].values())) == [2, 2, 3, 3]


def test_a_worker_that_was_stopped_is_refused_when_it_wakes(report: dict[str, Any]) -> None:
    fault = report["faults"][2]
    (victim,) = fault["victims"]
    assert fault["calls_under_way"] > 0
    assert fault["stale_refused"] > 0
    assert fault["shares_between"][victim] == []


def test_a_restart_of_the_broker_moves_no_partition(report: dict[str, Any]) -> None:
    fault = report["faults"][4]
    assert fault["moved_partitions"] == []
    assert fault["shares_after"] == fault["shares_before"]


def test_the_independent_check_agrees(kept: Path) -> None:
    done = check(kept)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("everything is as the file says\n")


def read_calls(kept: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (kept / "handled.ndjson").read_text().splitlines()]


def write_calls(kept: Path, calls: list[dict[str, Any]]) -> None:
    (kept / "handled.ndjson").write_text("".join(f"{json.dumps(call)}\n" for call in calls))


def swap_two_legs(kept: Path) -> None:
    """What the sink would hold had two legs of an aircraft been applied in the wrong order."""
    sink = json.loads((kept / "sink.json").read_bytes())
    key = next(key for key, track in sink["aircraft"].items() if track["legs"] > 3)
    offsets = sorted({call["offset"] for call in read_calls(kept) if call["key"] == key})
    partition = sink["aircraft"][key]["kafka_partition"]
    flights = [flight for flight in read_flights(limit=1500) if flight.key == key.encode()]
    legs = [(partition, *leg) for leg in zip(offsets, (f.value for f in flights), strict=True)]
    legs[1], legs[2] = legs[2], legs[1]
    track = reduce(lambda track, leg: follow(track, *leg), legs, Track())
    sink["aircraft"][key] = json.loads(encode(track))
    (kept / "sink.json").write_text(json.dumps(sink))


def store_out_of_order(kept: Path) -> None:
    """Two records of a partition that the stream has in another order than Kafka."""
    calls = read_calls(kept)
    first, second = [call for call in calls if call["kafka_partition"] == 3][5:7]
    first["offset"], second["offset"] = second["offset"], first["offset"]
    write_calls(kept, calls)


def lose_a_record(kept: Path) -> None:
    calls = read_calls(kept)
    gone = (calls[700]["kafka_partition"], calls[700]["offset"])
    write_calls(kept, [call for call in calls if (call["kafka_partition"], call["offset"]) != gone])


def change_a_figure(kept: Path) -> None:
    sink = json.loads((kept / "sink.json").read_bytes())
    track = next(track for track in sink["aircraft"].values() if track["longest_absence_min"])
    track["longest_absence_min"] += 1
    (kept / "sink.json").write_text(json.dumps(sink))


def change_a_chain(kept: Path) -> None:
    sink = json.loads((kept / "sink.json").read_bytes())
    track = next(iter(sink["aircraft"].values()))
    track["chain"] = track["chain"][::-1]
    (kept / "sink.json").write_text(json.dumps(sink))


def apply_an_effect_twice(kept: Path) -> None:
    file = kept / "effects.ndjson"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, next(line for line in lines if '"applied"' in line)]) + "\n")


def forget_an_effect(kept: Path) -> None:
    file = kept / "effects.ndjson"
    lines = file.read_text().splitlines()
    repeated = {json.loads(line)["seq"] for line in lines if '"repeat"' in line}
    gone = next(n for n, line in enumerate(lines) if json.loads(line)["seq"] not in repeated)
    file.write_text("\n".join(lines[:gone] + lines[gone + 1 :]) + "\n")


def forget_an_aircraft(kept: Path) -> None:
    sink = json.loads((kept / "sink.json").read_bytes())
    sink["aircraft"].popitem()
    (kept / "sink.json").write_text(json.dumps(sink))


def handle_out_of_order(kept: Path) -> None:
    calls = read_calls(kept)
    legs_of = defaultdict(list)
    for call in calls:
        legs_of[call["key"]].append(call)
    legs = next(legs for legs in legs_of.values() if len({leg["seq"] for leg in legs}) == 2)
    for leg in legs:
        if leg["seq"] == legs[0]["seq"]:
            leg["time"] = legs[-1]["time"] + 1
    write_calls(kept, calls)


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (swap_two_legs, r"chain,.* longest_absence_min|chain,.* shortest_turn_min"),
        (store_out_of_order, "in another order|legs were handled|in more than one partition"),
        (lose_a_record, "1499 records were handled, 1500 were produced"),
        (apply_an_effect_twice, "more ends of calls than calls|was applied 2 times"),
        (forget_an_effect, "nothing says that the effect of"),
        (change_a_figure, r": longest_absence_min differ"),
        (change_a_chain, r": chain differ"),
        (forget_an_aircraft, "is not in the sink"),
        (handle_out_of_order, "1 messages were handled out of order"),
    ],
)
def test_the_independent_check_finds_what_is_wrong(
    kept: Path, tmp_path: Path, spoil: Callable[[Path], None], finding: str
) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(kept, spoiled)
    spoil(spoiled)
    done = check(spoiled)
    assert done.returncode == 1
    assert re.search(f"WRONG: .*({finding})", done.stdout)


@pytest.mark.parametrize("name", ["sink.json", "handled.ndjson", "effects.ndjson"])
@pytest.mark.parametrize("is_torn", [True, False], ids=["torn", "missing"])
def test_the_independent_check_says_in_one_line_what_it_cannot_read(
    kept: Path, tmp_path: Path, name: str, is_torn: bool
) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(kept, spoiled)
    content = (spoiled / name).read_bytes()
    (spoiled / name).unlink()
    if is_torn:  # in the middle of a line, also where the half ends with one
        (spoiled / name).write_bytes(content[: len(content) // 2].rstrip(b"}]\n"))
    done = check(spoiled)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("check_demo.py: cannot be read: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.real_server
def test_the_same_demo_on_a_nats_server_leaves_nothing_on_it(tmp_path: Path) -> None:
    require.need("nats")
    with Server(REAL, tmp_path / "store") as server:
        file = tmp_path / "report.json"
        code, out, err = play(tmp_path, "--nats", server.url, "--report", str(file))
        assert (code, err) == (0, ""), out
        report = json.loads(file.read_bytes())
        assert report["servers"]["nats"]["embedded"] is False
        assert [fault["name"] for fault in report["faults"]] == FAULTS[:-1]
        # The server removes the folder of a deleted stream a moment later.
        await_true(lambda: not list((tmp_path / "store").glob("jetstream/*/streams/*")), 30)


@pytest.mark.kafka
def test_the_same_demo_on_a_real_kafka_leaves_no_topic_on_it(tmp_path: Path) -> None:
    require.need("kafka")
    with real_kafka() as kafka:
        file = tmp_path / "report.json"
        before = topics(kafka)
        code, out, err = play(tmp_path, "--kafka", kafka.bootstrap, "--report", str(file))
        assert (code, err) == (0, ""), out
        report = json.loads(file.read_bytes())
        assert report["servers"]["kafka"] == {"bootstrap": kafka.bootstrap, "embedded": False}
        assert [fault["name"] for fault in report["faults"]] == FAULTS
        assert topics(kafka) == before


def topics(kafka: Kafka) -> set[str]:
    """The topics people made."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    return {name for name in admin.list_topics(timeout=10).topics if not name.startswith("__")}


def test_a_kafka_that_is_not_there_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    code, _, err = play(tmp_path, "--kafka", "127.0.0.1:1")
    assert code == 3
    assert err.startswith("millstream demo: Kafka at 127.0.0.1:1: ")
    assert err.count("\n") == 1


def test_so_few_records_that_a_fault_would_meet_no_backlog_are_refused(tmp_path: Path) -> None:
    code, out, err = play(tmp_path, "--records", "599")
    assert (code, out) == (2, "")
    assert err == (
        "millstream demo: --records 599: 10 partitions need at least 600,"
        " or a fault would meet no backlog\n"
    )


def test_a_place_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    code, out, err = play(tmp_path, "--report", str(tmp_path / "nowhere" / "report.json"))
    assert (code, out) == (2, "")
    assert err == f"millstream demo: {tmp_path / 'nowhere'}: not a folder that can be written to\n"


def test_a_server_that_is_not_there_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    code, _, err = play(tmp_path, "--nats", "nats://127.0.0.1:1")
    assert (code, err) == (
        3,
        "millstream demo: no NATS server at nats://127.0.0.1:1: connection refused\n",
    )
