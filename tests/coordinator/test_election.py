"""Leaders that were found dead and come back, leaders that leave, and who takes the lead."""

from millstream_coordinator.events import LeaderChanged, MemberDead, PartitionLost
from millstream_coordinator.model import LeaderRecord, MemberRecord
from millstream_coordinator.naming import CONFIG_KEY, LEADER_KEY, PARTITION_PREFIX, member_key
from millstream_coordinator.ports import Command, DeleteKey, Failed, Failure, WriteKey

from .plane import GROUP, SHORT_LEASE, STREAM, Plane, Process


def _only(plane: Plane, leads: Process | None) -> None:
    """Let nobody else take the leader's key."""

    def loses(process: Process, command: Command) -> bool:
        if not isinstance(command, WriteKey) or command.key != LEADER_KEY or process is leads:
            return False
        process.take(Failed(id=command.id, reason=Failure.TIMEOUT))
        return True

    plane.loses = loses


def _after_the_first_leader_was_away(plane: Plane) -> tuple[Process, Process, Process]:
    first, second, third = plane.settle("a", "b", "c")
    assert plane.leader is first
    first.disconnect()
    _only(plane, None)
    plane.until(lambda: "a" in third.machine.election.dead)
    _only(plane, second)
    plane.until(lambda: second.machine.is_leader and "a" not in plane.owners().values())
    first.reconnect()
    plane.until(lambda: bool(first.partitions) and plane.is_served())
    plane.run(1.0)
    return first, second, third


def test_a_new_leader_holds_no_old_verdict_against_a_member_that_came_back() -> None:
    plane = Plane()
    first, second, third = _after_the_first_leader_was_away(plane)
    _only(plane, third)

    second.kill()

    plane.until(lambda: third.machine.is_leader)
    plane.run(1.0)
    assert [event.member for event in third.told(MemberDead)] == ["b"]
    assert first.partitions


def test_a_leader_that_came_back_and_leads_again_is_followed_again() -> None:
    plane = Plane()
    first, second, third = _after_the_first_leader_was_away(plane)
    _only(plane, first)
    second.kill()
    plane.until(lambda: first.machine.is_leader)

    plane.loses = lambda _process, _command: False
    plane.run(5.0)
    assert plane.leader is first

    first.kill()
    plane.until(lambda: third.machine.is_leader, 3.0)


def test_a_leader_that_is_heard_again_before_anybody_took_the_key_goes_on() -> None:
    plane = Plane()
    first, second, third = plane.settle("a", "b", "c")
    first.disconnect()
    _only(plane, None)
    plane.until(lambda: "a" in third.machine.election.dead and "a" in second.machine.election.dead)

    first.reconnect()
    plane.until(lambda: not second.machine.election.dead and not third.machine.election.dead)
    plane.loses = lambda _process, _command: False
    plane.run(5.0)

    assert plane.leader is first
    assert not second.told(MemberDead)
    assert not third.told(MemberDead)


def _leader_key(plane: Plane) -> LeaderRecord | None:
    return plane.read(LeaderRecord, LEADER_KEY)


def test_the_key_goes_with_a_leader_whose_lease_is_renewed_while_it_leaves() -> None:
    plane = Plane()
    (a,) = plane.settle("a")
    renewals = [LEADER_KEY, member_key("a")]

    def loses(_process: Process, command: Command) -> bool:
        if isinstance(command, DeleteKey) and command.key in renewals:
            renewals.remove(command.key)
            plane.server.touch(GROUP, command.key)
        return False

    plane.loses = loses
    a.stop()
    plane.until(lambda: not a.is_alive)

    assert renewals == []
    assert _leader_key(plane) is None
    assert plane.read(MemberRecord, member_key("a")) is None


def test_the_key_goes_with_a_leader_that_could_not_drain_in_time() -> None:
    plane = Plane()
    (a,) = plane.settle("a")
    plane.handler_s = 60.0
    plane.server.publish(STREAM, "s.0.k", b"")
    plane.run(0.1)

    a.stop()
    plane.until(lambda: not a.is_alive, plane.timing.drain_timeout_s + 2.0)

    assert _leader_key(plane) is None


def test_a_leader_of_a_lost_bucket_does_not_fight_the_next_one_over_a_known_name() -> None:
    plane = Plane()
    a, b, _c = plane.settle("a", "b", "c")
    num_writes = 0

    def loses(_process: Process, command: Command) -> bool:
        nonlocal num_writes
        is_record = isinstance(command, WriteKey) and command.key.startswith(PARTITION_PREFIX)
        num_writes += is_record
        assert num_writes < 100, "two leaders take partitions from each other"
        return False

    plane.loses = loses
    b.kill()
    plane.server.delete_bucket(GROUP)
    plane.join("b")
    plane.until(lambda: plane.is_served() and not a.machine.is_leader, 1.0)
    plane.run(5.0)

    assert plane.is_served()
    assert len({one.settings.instance for one in plane.processes if one.partitions}) == 3


def test_nobody_leads_by_a_description_of_a_newer_version() -> None:
    plane = Plane()
    first, second = plane.settle("a", "b")
    description = plane.server.value(GROUP, CONFIG_KEY)
    assert description is not None

    newer = b'{"version": 99, "partitions": 4, "stream": "S"}'
    plane.server.put(GROUP, CONFIG_KEY, newer)
    plane.run(3 * first.machine.context.settings.timing.lease_s)
    assert not first.machine.is_leader
    assert not second.machine.is_leader
    assert first.told(LeaderChanged)[-1].leader is second.told(LeaderChanged)[-1].leader is None

    plane.server.put(GROUP, CONFIG_KEY, description)
    plane.until(plane.is_served)
    assert [bool(event.leader) for event in second.told(LeaderChanged)] == [True, False, True]


def test_workers_go_on_without_a_leader() -> None:
    plane = Plane()
    plane.join("lead", capacity=0)
    plane.run(0.5)
    a = plane.join("a", can_lead=False)
    plane.until(plane.is_served)
    plane.leader.kill()

    plane.run(8.0)
    plane.server.publish(STREAM, "s.0.k", b"")
    plane.until(lambda: len(a.handled) == 1)

    assert not a.machine.is_leader
    assert a.told(PartitionLost) == []


def test_a_leader_that_renews_nothing_is_replaced_where_leases_do_not_run_out() -> None:
    plane = Plane(has_key_ttl=False, timing=SHORT_LEASE)
    a, b = plane.settle("a", "b")
    leader, other = (a, b) if a.machine.is_leader else (b, a)
    plane.loses = lambda one, command: one is leader and isinstance(command, WriteKey)

    plane.until(lambda: other.machine.is_leader, 12.0)


def test_who_is_deaf_does_not_take_the_lead() -> None:
    plane = Plane()
    plane.settle("a", "b", "c")
    leader = plane.leader
    deaf = next(one for one in plane.processes if one is not leader)
    deaf.client.send = lambda _event: None
    deaf.client.probed = lambda *_: None  # type: ignore[method-assign]
    plane.run(0.9)

    leader.kill()
    plane.run(1.0)

    assert not deaf.machine.is_leader
    assert plane.leader is not deaf
