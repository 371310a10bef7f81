"""The bridge's tests on the oldest Apache Kafka it is said to work with; part of ``make compat``.

    python -m tests.compat.kafka

Fetches the jars into ``.cache/kafka-<version>`` (needs Maven and Java) and runs every test of the
bridge that is marked ``kafka`` on them. Exit code: pytest's, or 3 when they could not be fetched.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.kafka import fetch

VERSION = "4.0.2"
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / f"kafka-{VERSION}"


def main() -> int:
    """Fetch, unless it is there, and run."""
    try:
        if not any(FOLDER.glob(f"kafka_2.13-{VERSION}.jar")):
            fetch(FOLDER, VERSION)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"Apache Kafka {VERSION} could not be fetched: {error}", file=sys.stderr)
        return 3
    command = [sys.executable, "-m", "pytest", "-q", "tests/bridge", "-m", "kafka"]
    environment = {**os.environ, "KAFKA_JARS": str(FOLDER), "MILLSTREAM_REQUIRE": "kafka"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
