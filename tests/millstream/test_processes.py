"""Child processes: ready, failed, killed, and never left behind."""

import os
from pathlib import Path

import pytest

from millstream.demo.processes import Child, ChildFailed, Family
from tests.millstream.demo_run import is_alive

READY = """
from pathlib import Path
from millstream.demo.child import announce, end_with_standard_input
import threading
end_with_standard_input()
announce(Path("{directory}/good.ready"), answer=42)
threading.Event().wait()
"""


def module(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    """Make ``python -m name`` run this source."""
    (directory / f"{name}.py").write_text(source.format(directory=directory))
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{root}")


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A child that behaves: ready at once, ends with its standard input."""
    module(tmp_path, monkeypatch, "good_child", READY)
    return "good_child"


async def test_a_child_is_ready_when_it_says_so(tmp_path: Path, good: str) -> None:
    with Family(tmp_path) as family:
        child = family.start("good", good)
        await child.ready()
        assert child.facts == {"pid": child.pid, "answer": 42}
        family.check()
    assert not is_alive(child.pid)


async def test_a_child_that_ends_before_it_is_ready_is_named_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, monkeypatch, "bad_child", "raise SystemExit('the port is taken')")
    with Family(tmp_path) as family:
        with pytest.raises(ChildFailed) as caught:
            await family.start("bad", "bad_child").ready()
        assert str(caught.value) == "bad ended with code 1: the port is taken"


async def test_a_child_that_ends_unasked_is_noticed_and_one_that_was_dismissed_is_not(
    tmp_path: Path, good: str
) -> None:
    with Family(tmp_path) as family:
        child = family.start("good", good)
        await child.ready()
        child.kill()
        await child.gone()
        with pytest.raises(ChildFailed, match="good ended with code -9"):
            family.check()
        family.dismiss(child)
        family.check()


async def test_a_child_ends_when_nobody_holds_its_standard_input_any_more(
    tmp_path: Path, good: str
) -> None:
    with Family(tmp_path) as family:
        child = family.start("good", good)
        await child.ready()
        child._close_pipe()
        await child.gone()
        assert not is_alive(child.pid)


async def test_a_child_cannot_be_reached_by_a_ctrl_c_in_the_terminal(
    tmp_path: Path, good: str
) -> None:
    with Family(tmp_path) as family:
        child = family.start("good", good)
        await child.ready()
        assert os.getpgid(child.pid) == child.pid
        assert os.getsid(child.pid) == os.getsid(0)


async def test_a_stopped_child_is_ended_as_well(tmp_path: Path, good: str) -> None:
    with Family(tmp_path) as family:
        children: list[Child] = []
        for _ in range(2):
            child = family.start("good", good)
            await child.ready()
            child.stop()
            children.append(child)
        await children[0].terminate()
        assert not is_alive(children[0].pid)
    assert not is_alive(children[1].pid)
