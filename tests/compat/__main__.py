"""``make compat``: fetch every server of the field, run these tests on each, write the table.

    python -m tests.compat [--no-chaos] [--output FILE]

Exit code 0 when everything held on every server, 1 when something did not, 3 when a server could
not be fetched. The table is ``coordinator/docs/reference/servers.md``.
"""

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import nats

from millstream_coordinator.jetstream.api import Api
from millstream_coordinator.jetstream.keys import Bucket
from millstream_coordinator.model import ConfigRecord, MemberSettings
from tests.compat import test_chaos, test_group
from tests.helpers.versions import VERSIONS, VersionServer, fetch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "coordinator" / "docs" / "reference" / "servers.md"
MODULES = (test_group, test_chaos)

_HEAD = """\
# Which servers a group works on

<!-- Written by `make compat`: every line is a test that ran on every server. -->

The coordinator asks a server for its API level before it uses anything, compares the configuration
that a server echoes with the one it asked for, and goes another way where something is missing:
older servers accept fields they do not know, and drop them.

"""
_TAIL = """
✔ held, ✘ did not, - not there and not needed.

- **Leases**: before 2.11 no key runs out by itself. The members then judge a lease by whether it
  was written again in time, on their own clocks.
- **2.10 and `first_seq`**: a stream made with `first_seq` is empty after any restart of 2.10.26 as
  long as the message of that sequence is still there. The group's bucket is written so that it is
  not; do not set `first_seq` on streams of your own there.
- **Atomic batches** (`BatchSink`, exactly once from NATS to NATS) need 2.12 and say so; all other
  sinks work everywhere.
"""


def main() -> int:
    """Fetch, run, write."""
    parser = argparse.ArgumentParser(description="the coordinator on every server of the field")
    parser.add_argument("--no-chaos", action="store_true", help="leave the kills out")
    parser.add_argument("--output", type=Path, default=PAGE)
    given = parser.parse_args()
    for version in VERSIONS:
        try:
            fetch(version)
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            print(f"nats-server {version} could not be fetched: {error}", file=sys.stderr)
            return 3
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        tests = ["tests/compat"] if not given.no_chaos else ["tests/compat/test_group.py"]
        command = [sys.executable, "-m", "pytest", "-q", *tests, f"--junitxml={report}"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        results = _results(report)
    facts = {version: asyncio.run(_facts(version)) for version in VERSIONS}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(page(results, facts), encoding="utf-8")
    print(f"wrote {given.output}")
    return 0 if code == 0 else 1


def page(results: Mapping[str, Mapping[str, bool]], facts: Mapping[str, Mapping[str, str]]) -> str:
    """The documentation's page: test → version → whether it held, and what servers say."""
    lines = [f"| | {' | '.join(VERSIONS)} |", f"|---|{'---|' * len(VERSIONS)}"]
    names = dict.fromkeys(name for one in facts.values() for name in one)
    for name in names:
        cells = [facts.get(version, {}).get(name, "-") for version in VERSIONS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for test, held in results.items():
        marks = {True: "✔", False: "✘", None: "-"}
        cells = [marks[held.get(version)] for version in VERSIONS]
        lines.append(f"| {_title(test)} | {' | '.join(cells)} |")
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def _title(test: str) -> str:
    """The first line of the test's docstring."""
    for module in MODULES:
        function = getattr(module, test, None)
        if function is not None and function.__doc__:
            return str(function.__doc__).strip().splitlines()[0].rstrip(".")
    return test


def _results(report: Path) -> dict[str, dict[str, bool]]:
    """Test → version → whether all of its cases held; a skipped one is left out.

    The bridge's tests are left out: the page is about groups.
    """
    results: dict[str, dict[str, bool]] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        found = re.fullmatch(r"(\w+)\[(.*)\]", case.get("name", ""))
        version = next((one for one in VERSIONS if found and one in found[2].split("-")), None)
        if case.get("classname", "").endswith("test_bridge"):
            continue
        if found is None or version is None or case.find("skipped") is not None:
            continue
        is_held = case.find("failure") is None and case.find("error") is None
        held = results.setdefault(found[1], {})
        held[version] = held.get(version, True) and is_held
    return results


async def _facts(version: str) -> dict[str, str]:
    """What a server says of itself, and what it echoes."""
    with tempfile.TemporaryDirectory() as store, VersionServer(version, store) as server:
        client = await nats.connect(server.url)
        try:
            api = Api(client, 2.0)
            level = (await api.call("INFO")).get("api", {}).get("level")
            config = ConfigRecord(partitions=1, stream=None, filter=None)
            settings = MemberSettings(group="g", member="m", instance="i", config=config)
            bucket = Bucket(api, settings)
            await bucket.prepare(1, has_ttl=True)
            batch = {"name": "B", "subjects": ["b"], "allow_atomic": True}
            echoed = (await api.call("STREAM.CREATE.B", batch))["config"]
        finally:
            await client.close()
    return {
        "API level": "-" if level is None else str(level),
        "Keys that run out by themselves": "✔" if bucket.has_ttl else "-",
        "Atomic batches (`BatchSink`)": "✔" if echoed.get("allow_atomic") else "-",
    }


if __name__ == "__main__":
    sys.exit(main())
