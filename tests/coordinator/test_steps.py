"""Scripts: one reply per command, one script per key, pauses by the clock that is given."""

from millstream_coordinator.machine.steps import Pause, Script, Steps
from millstream_coordinator.ports import Command, Done, Failed, Failure, KeyRead, ReadKey


def make() -> tuple[Steps, list[Command], list[object]]:
    out: list[Command] = []
    return Steps(out), out, []


def reading(steps: Steps, key: str, seen: list[object]) -> Script:
    reply = yield ReadKey(id=steps.take_id(), key=key)
    seen.append(reply)


def test_a_script_runs_to_its_first_command_and_on_with_the_reply() -> None:
    steps, out, seen = make()

    steps.start("a", reading(steps, "k", seen), 0.0)
    reply = KeyRead(id=1, value=b"v", revision=3)
    steps.receive(reply, 0.1)

    assert out == [ReadKey(id=1, key="k")]
    assert seen == [reply]
    assert "a" not in steps


def test_a_second_script_under_a_key_abandons_the_first() -> None:
    steps, _, seen = make()
    steps.start("a", reading(steps, "old", seen), 0.0)

    steps.start("a", reading(steps, "new", seen), 0.0)

    assert not steps.receive(Done(id=1), 0.1)
    assert steps.receive(Done(id=2), 0.1)
    assert seen == [Done(id=2)]


def test_a_reply_nobody_waits_for_is_dropped() -> None:
    steps, _, _ = make()

    assert not steps.receive(Done(id=7), 0.0)


def test_a_pause_ends_at_its_time() -> None:
    steps, _, seen = make()

    def pausing() -> Script:
        seen.append((yield Pause(0.5)))

    steps.start("a", pausing(), 1.0)

    assert steps.next_deadline == 1.5
    steps.tick(1.4)
    assert seen == []
    steps.tick(1.5)
    assert seen == [Failed(id=1, reason=Failure.TIMEOUT, detail="pause")]


def test_a_script_may_abandon_itself_by_starting_its_successor() -> None:
    steps, out, seen = make()

    def replacing() -> Script:
        yield ReadKey(id=steps.take_id(), key="first")
        steps.start("a", reading(steps, "second", seen), 0.0)
        yield ReadKey(id=steps.take_id(), key="never")

    steps.start("a", replacing(), 0.0)
    steps.receive(Done(id=1), 0.0)
    steps.receive(Done(id=2), 0.0)

    assert [one.key for one in out if isinstance(one, ReadKey)] == ["first", "second"]
    assert seen == [Done(id=2)]


def test_scripts_are_abandoned_by_what_their_key_says() -> None:
    steps, _, seen = make()
    steps.start(("lead", 1), reading(steps, "k", seen), 0.0)
    steps.start(("own", 1), reading(steps, "k", seen), 0.0)

    steps.cancel_if(lambda key: isinstance(key, tuple) and key[0] == "lead")

    assert ("lead", 1) not in steps
    assert ("own", 1) in steps


def test_a_pause_for_a_script_ends_with_it() -> None:
    steps, _, seen = make()

    def waiting() -> Script:
        yield Pause(9.0, "other")
        seen.append("after")

    steps.start("other", reading(steps, "k", seen), 0.0)
    steps.start("one", waiting(), 0.0)
    assert seen == []
    reply = Done(id=1)
    steps.receive(reply, 0.1)

    assert seen == [reply, "after"]
    assert steps.next_deadline == 9.0
    steps.tick(9.0)
    assert seen == [reply, "after"]
