"""The bridge's tests on a real Kafka in the mock's place and three nats-servers; of `make compat`.

    python -m tests.compat.clusters [--kafka real]

By default Kafka is three brokers, too; its jars are those of ``make kafka``, without which tests
fail. What is left out, and why, says `tests.bridge.elsewhere`. Exit code: pytest's.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.bridge.elsewhere import CLUSTER
from tests.helpers.kafka import REAL

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description="the bridge's tests on clusters")
    parser.add_argument("--kafka", choices=[REAL, CLUSTER], default=CLUSTER)
    given = parser.parse_args()
    command = [sys.executable, "-m", "pytest", "-q", "tests/bridge", "-m", "not slow"]
    command += ["--kafka", given.kafka, "--nats", CLUSTER]
    environment = {**os.environ, "MILLSTREAM_REQUIRE": "kafka,nats"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
