"""``make chaos``: the long forms of the kill -9 runs, one after the other, on both servers.

Each run prints its own figures and can be started alone with the command that is printed before it.
Exit code 1 if one of them failed.
"""

import shlex
import subprocess
import sys

_STORM = "--kills 100 --server-kills 20 --kafka-kills 20 --cuts 20 --stalls 20"
_SHORT_STORM = "--records 200000 --kills 10 --server-kills 5 --kafka-kills 3 --cuts 3 --stalls 3"
RUNS = (
    "takeover --kills 100 --server embedded",
    "takeover --kills 100 --server real",
    "group --faults 200 --seeds 10 --server embedded",
    "group --faults 200 --seeds 10 --server real",
    "group --faults 200 --seeds 10 --server cluster",
    "moves --changes 50 --server real",
    "moves --changes 50 --server cluster",
    "moves --changes 50 --server cluster --retention workqueue",
    "rolling --server real --signal SIGTERM",
    "rolling --server real --signal SIGKILL",
    "restart --restarts 10 --server real",
    "scale --server real",
    "scale --server cluster --retention workqueue",
    "flights --server embedded",
    "flights --server real",
    "group --faults 10 --seeds 2 --server real --control unfenced",
    "group --faults 10 --seeds 2 --server real --control pullers",
    "bridge_kill --kills 100 --server-kills 20 --server embedded",
    "bridge_kill --kills 100 --server-kills 20 --server real",
    "bridge_kill --kills 50 --server-kills 10 --server real --shared",
    "back_kill --kills 50 --server-kills 10 --server embedded",
    "back_kill --kills 50 --server-kills 10 --kafka-kills 5 --server real",
    "back_kill --kills 10 --server-kills 10 --server cluster",
    "back_kill --kills 10 --kafka-kills 10 --kafka cluster",
    "both_ways --turns 200 --kills 100 --server-kills 20 --kafka-kills 10 --server real",
    "both_ways --turns 100 --kills 60 --server-kills 20 --server embedded",
    "both_ways --turns 40 --kills 20 --server-kills 10 --server cluster",
    "both_ways --turns 40 --kills 20 --kafka-kills 10 --kafka cluster",
    f"bridge_storm --mode chain --bridges 3 {_STORM}",
    f"bridge_storm --mode shared --bridges 2 {_STORM}",
    f"bridge_storm --mode dense --bridges 2 {_STORM}",
    f"bridge_storm --mode chain --server embedded {_SHORT_STORM}",
    f"bridge_storm --mode shared --server embedded {_SHORT_STORM}",
    f"bridge_storm --mode dense --server embedded {_SHORT_STORM}",
    "bridge_storm --mode chain --server cluster --records 200000 --kills 10 --server-kills 20",
    "bridge_storm --mode shared --server cluster --records 200000 --kills 10 --server-kills 20",
    "bridge_storm --mode chain --kafka cluster --records 200000 --kills 5 --kafka-kills 20",
    "bridge_storm --guard sequence --records 100000 --kills 10 --cuts 10",
    "bridge_storm --guard none --records 100000 --kills 10 --cuts 10",
)


def main() -> int:
    """Run them all, whatever each says."""
    failed = []
    for run in RUNS:
        print(f"== python -m tests.chaos.{run}", flush=True)
        command = [sys.executable, "-m", f"tests.chaos.{run.split()[0]}", *shlex.split(run)[1:]]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(run)
    print(f"{len(RUNS) - len(failed)} of {len(RUNS)} runs held", *failed, sep="\n  failed: ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
