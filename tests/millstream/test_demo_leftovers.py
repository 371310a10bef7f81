"""However the demo ends, no process and no port is left behind."""

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.millstream.demo_run import SMALL, Demo, demo, is_alive, is_open

GONE_S = 15.0

pytestmark = pytest.mark.slow


def await_nothing_left(children: dict[str, int], ports: list[int]) -> None:
    """Every child ends, and every port is closed, within a bounded time."""
    pause = threading.Event()
    left = children
    for _ in range(int(GONE_S / 0.05)):
        left = {name: pid for name, pid in children.items() if is_alive(pid)}
        if not left and not any(map(is_open, ports)):
            return
        pause.wait(0.05)
    for pid in left.values():
        os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"left behind: {left}, open: {[port for port in ports if is_open(port)]}")


def all_started(running: Demo) -> tuple[dict[str, int], list[int]]:
    children = running.children()
    assert {"broker", "kafka", "bridge", "worker-1", "worker-5"} <= children.keys()
    ports = running.ports()
    assert len(ports) == 2
    assert all(map(is_open, ports))
    return children, ports


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, ending: signal.Signals) -> None:
    with demo(tmp_path, *SMALL) as running:
        running.until("5 workers share 10 partitions")
        children, ports = all_started(running)
        running.process.send_signal(ending)
        _, said = running.process.communicate(timeout=30)
        assert running.process.returncode == 130
        assert "Traceback" not in said
    await_nothing_left(children, ports)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL) as running:
        running.until("5 workers share 10 partitions")
        children, ports = all_started(running)
        running.process.kill()
        running.process.communicate(timeout=30)
    await_nothing_left(children, ports)


def test_a_demo_killed_while_a_worker_is_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL) as running:
        stopped = running.until("SIGSTOP").split()[3].rstrip(",")
        children, ports = all_started(running)
        os.kill(children[stopped], signal.SIGSTOP)  # it may have been woken in the meantime
        running.process.kill()
        running.process.communicate(timeout=30)
    await_nothing_left(children, ports)


def test_a_demo_that_nobody_reads_any_more_ends_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL) as running:
        running.until("5 workers share 10 partitions")
        children, ports = all_started(running)
        running.output.close()
        assert running.process.stderr is not None
        assert running.process.stderr.read() == ""
        assert running.process.wait(30) == 1
        running.process.stdout = None
    await_nothing_left(children, ports)


def test_a_demo_that_cannot_go_on_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL) as running:
        running.until("5 workers share 10 partitions")
        children, ports = all_started(running)
        os.kill(children["kafka"], signal.SIGKILL)
        _, said = running.process.communicate(timeout=60)
        assert running.process.returncode == 3
        assert said.startswith("millstream demo: kafka ended with code -9")
        assert said.count("\n") == 1
    await_nothing_left(children, ports)
