"""A simulated process: one group machine, its connection, its handlers, and what may befall it.

The connection is pipes in order, to the server and back, each with a delay. To one server there is
one pipe each way; in a cluster the bucket, the stream, acks, pulls and core NATS have pipes of
their own, and replies overtake each other: what goes to different leaders is in no order. A cut
loses what is under way and the server forgets the client; a pause (SIGSTOP) loses nothing: what
arrives waits, timers and handlers stand still, and all of it is there on waking. A suspension (a
virtual machine that is stopped and resumed) stops the monotonic clock as well and breaks the
connection without the member noticing: no clock of its own can fence it, only the sink. The clock
may also stand still or leap while the process runs. A kill ends it all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from millstream_coordinator.machine.group import GroupMachine
from millstream_coordinator.memory import MemoryClient
from millstream_coordinator.model import MemberSettings, Message
from millstream_coordinator.ports import (
    Ack,
    Acks,
    Alive,
    Announce,
    Announced,
    Beat,
    BucketGone,
    ClosePull,
    Command,
    DeleteKey,
    Delivered,
    Disconnected,
    DoubleAck,
    Enter,
    Entered,
    Failed,
    Failure,
    Flush,
    Flushed,
    Handle,
    Handled,
    Happening,
    Heard,
    KeyChanged,
    Listen,
    ListKeys,
    OpenPull,
    Prepare,
    Probe,
    PullEnded,
    PullIdle,
    ReadKey,
    Reconnected,
    Reply,
    Stop,
    Tell,
    Watch,
    WatchCaughtUp,
    WriteKey,
)
from millstream_coordinator.sinks import Verdict

if TYPE_CHECKING:
    from .world import World

FOREVER = float("inf")
SPINS_MAX = 100
_UP = {
    Ack: "ack",
    Acks: "ack",
    DoubleAck: "ack",
    Beat: "core",
    Probe: "core",
    Listen: "core",
    Announce: "core",
    OpenPull: "pull",
    ClosePull: "pull",
    ReadKey: "bucket",
    WriteKey: "bucket",
    DeleteKey: "bucket",
    ListKeys: "bucket",
    Prepare: "bucket",
    Watch: "bucket",
}
"""Which pipe a command takes in a cluster; everything else goes to the stream."""
_KEPT = (Watch, OpenPull, ClosePull, Listen)
"""What an adapter repeats until it gets through; `Listen` also over the next connection."""
_HAPPENINGS = (
    Announced,
    KeyChanged,
    WatchCaughtUp,
    BucketGone,
    Heard,
    Delivered,
    PullIdle,
    PullEnded,
)
"""What a server sends unasked."""


class SimulatedClient(MemoryClient):
    """Answers a probe only when its process gets round to it."""

    member: SimulatedMember

    def probed(self, asker: MemoryClient, id_: int) -> None:
        self.member.deliver(lambda: self.member.answer_probe(asker, id_), "core")


class SimulatedMember:
    """One process of the group."""

    def __init__(self, world: World, settings: MemberSettings) -> None:
        self.world = world
        self.settings = settings
        self.machine = GroupMachine(settings)
        self.client = SimulatedClient(settings, world.rule, self._from_server)
        self.client.member = self
        self.is_alive = True
        self.is_paused = False
        self.is_connected = True
        self.is_half_open = False
        """The connection is gone and the member does not know."""
        self.clock_lag_s = 0.0
        """How far the member's monotonic clock is behind the world's; negative: ahead."""
        self._still_at: float | None = None
        """The world's time at which the member's clock stopped."""
        self.slow_until = 0.0
        self.confirmed_at = -FOREVER
        """When the newest heartbeat that came back was sent: what the member may rely on."""
        self._waiting: list[Callable[[], None]] = []
        self._outstanding: set[int] = set()
        self._timeouts: deque[tuple[float, int]] = deque()
        """(world's time, id) of commands that may not be answered in time, the first first."""
        self._connection = 0
        self._num_watches = 0
        """So many times it asked to watch: what an earlier watch had under way is dropped."""
        self._listens: Listen | None = None
        """Whose heartbeats it wants: a subscription, which a client makes again when it is back."""
        self._up_at: dict[Hashable, float] = {}
        self._down_at: dict[Hashable, float] = {}
        self._tick_at = FOREVER
        self._ticked_for = -FOREVER
        self._num_spins = 0
        self._is_flushing = False

    @property
    def name(self) -> str:
        return self.settings.instance

    @property
    def now(self) -> float:
        """The member's own monotonic clock."""
        now = self.world.scheduler.now if self._still_at is None else self._still_at
        return now - self.clock_lag_s

    # ---- life ----

    def start(self) -> None:
        self.world.server.attach(self.client)
        self.machine.start(self.now)
        self._carry_out_all()

    def stop(self) -> None:
        def stop() -> None:
            self.machine.stop(self.now)
            self._carry_out_all()

        self._when_awake(stop)

    def kill(self) -> None:
        self.world.note(self, "dies")
        self.is_alive = False
        self._waiting.clear()
        self.world.server.detach(self.client)

    def pause(self) -> None:
        self.world.note(self, "is paused")
        self.is_paused = True

    def suspend(self) -> None:
        """Pause, with the clock, and with a connection that is not there any more."""
        if self.is_paused or not self.is_connected:
            return
        self.world.note(self, "is suspended")
        self.is_paused = True
        self.stop_clock()
        self.is_half_open = True
        self._end_connection()
        self.world.server.detach(self.client)

    def wake(self) -> None:
        self.world.note(self, "wakes")
        self.start_clock()
        self.is_paused = False
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            if self.is_alive:
                action()
        self._tick()

    # ---- the clock ----

    def stop_clock(self) -> None:
        """Let the monotonic clock stand still; timers do, too."""
        if self._still_at is None:
            self.world.note(self, "its clock stands still")
            self._still_at = self.world.scheduler.now

    def start_clock(self) -> None:
        if self._still_at is not None:
            self.world.note(self, "its clock goes on")
            self.clock_lag_s += self.world.scheduler.now - self._still_at
            self._still_at = None
            self._tick_at = FOREVER
            self._arrange_tick()

    def leap(self, seconds: float) -> None:
        """Let the monotonic clock jump ahead."""
        self.world.note(self, f"its clock leaps {seconds:.3f} s")
        self.clock_lag_s -= seconds
        self._tick_at = FOREVER
        self._when_awake(self._tick)

    # ---- the connection ----

    def disconnect(self) -> None:
        """Lose the connection: what is under way is lost, and both sides notice."""
        if not self.is_alive or not self.is_connected:
            return
        self.world.note(self, "is disconnected")
        self.is_connected = False
        self.is_half_open = False
        self._end_connection()
        self.world.server.detach(self.client)
        self._when_awake(self._notice_disconnect)

    def _end_connection(self) -> None:
        self._connection += 1
        self._num_watches = self.client.num_watches

    def reconnect(self) -> None:
        if not self.is_alive or self.is_connected or self.world.is_server_down:
            return
        self.world.note(self, "is connected again")
        self.is_connected = True
        self._up_at.clear()
        self._down_at.clear()
        self.world.server.attach(self.client)
        if self._listens is not None:
            self.world.execute(self.client, self._listens)
        self._when_awake(lambda: self._take(Reconnected()))

    def _notice_disconnect(self) -> None:
        outstanding, self._outstanding = sorted(self._outstanding), set()
        self._take(Disconnected())
        for id_ in outstanding:
            self._take(Failed(id=id_, reason=Failure.DISCONNECTED))

    def watch(self) -> None:
        """Open the watch anew, as an adapter does that misses something."""
        self._send(Watch())

    @property
    def is_active(self) -> bool:
        return self.is_alive and not self.is_paused and self.is_connected and not self.is_half_open

    # ---- the machine ----

    def _when_awake(self, action: Callable[[], None]) -> None:
        if not self.is_alive:
            return
        if self.is_paused:
            self._waiting.append(action)
        else:
            action()

    def _take(self, event: Happening | Reply) -> None:
        if self.is_alive:
            self.machine.receive(event, self.now)
            self._carry_out_all()

    def _tick(self) -> None:
        if self.is_alive:
            self.machine.tick(self.now)
            self._carry_out_all()

    def _carry_out_all(self) -> None:
        for command in self.machine.take_commands():
            self._carry_out(command)
        if self.settings.takes_calls:
            self._take_calls()
        self._arrange_tick()

    def _arrange_tick(self) -> None:
        if self._still_at is not None:
            return
        deadline = max(self.machine.next_deadline, self.now)
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.world.scheduler.at(deadline + self.clock_lag_s, lambda: self._on_timer(deadline))

    def _on_timer(self, deadline: float) -> None:
        if self._tick_at != deadline or self._still_at is not None:
            return
        self._tick_at = FOREVER
        if self.is_alive and not self.is_paused:
            self._check_spin(deadline)
            # Never early for lack of a last binary digit.
            self.machine.tick(max(self.now, deadline))
            self._carry_out_all()

    def _check_spin(self, deadline: float) -> None:
        """A deadline that is there again after its tick is a loop that burns a core."""
        self._num_spins = self._num_spins + 1 if deadline == self._ticked_for else 0
        self._ticked_for = deadline
        if self._num_spins > SPINS_MAX:
            self.world.checkers.fail(f"{self.name} spins: it is always due again at {deadline:.3f}")

    # ---- commands ----

    def _carry_out(self, command: Command) -> None:
        world = self.world
        if world.trace is not None:
            world.note_command(self, command)
        match command:
            case Handle():
                self._begin(command.messages, is_taken=False)
            case Enter():
                entered = Entered(partition=command.partition, epoch=command.epoch)
                self._after_hook(entered)
            case Flush():
                self._after_hook(Flushed(partition=command.partition, epoch=command.epoch))
            case Tell():
                world.told(self, command.event)
            case Stop():
                if command.error is not None:
                    world.checkers.fail(f"{self.name} ended: {command.error!r}")
                self.kill()
            case _:
                if isinstance(command, Acks):
                    for message in command.messages:
                        world.checkers.acks(self, message)
                elif isinstance(command, Ack) and not command.is_progress:
                    world.checkers.acks(self, command.message)
                self._send(command)

    def _send(self, command: Command) -> None:
        world = self.world
        if isinstance(command, Listen):
            self._listens = command
        id_: int | None = getattr(command, "id", None)
        if id_ is not None:
            self._outstanding.add(id_)
            if not self.is_connected:
                world.scheduler.after(0.0, lambda: self._fail(id_, Failure.DISCONNECTED))
                return
            self._arrange_timeout(id_)
        if not self.is_connected or self.is_half_open:
            return
        if world.loss and not isinstance(command, _KEPT) and world.loses():
            return
        if isinstance(command, Watch):
            self._num_watches += 1
            world.checkers.watches(self)
        connection = self._connection
        pipe = _UP.get(type(command), "stream") if world.is_cluster else None
        at = max(self._up_at.get(pipe, 0.0), world.scheduler.now + world.delay())
        self._up_at[pipe] = at

        def arrive() -> None:
            if self._connection == connection and self.is_alive and not world.is_server_down:
                world.execute(self.client, command)

        world.scheduler.at(at, arrive)

    def _arrange_timeout(self, id_: int) -> None:
        at = self.world.scheduler.now + self.settings.timing.request_timeout_s
        self._timeouts.append((at, id_))
        if len(self._timeouts) == 1:
            self.world.scheduler.at(at, self._time_out)

    def _time_out(self) -> None:
        """Fail what is overdue; what was answered is only dropped, many at a time."""
        timeouts = self._timeouts
        now = self.world.scheduler.now
        while timeouts and (timeouts[0][0] <= now or timeouts[0][1] not in self._outstanding):
            at, id_ = timeouts.popleft()
            if at <= now:
                self._fail(id_, Failure.TIMEOUT)
        if timeouts and self.is_alive:
            self.world.scheduler.at(timeouts[0][0], self._time_out)

    def _fail(self, id_: int, reason: Failure) -> None:
        def fail() -> None:
            if id_ in self._outstanding:
                self._outstanding.discard(id_)
                self._take(Failed(id=id_, reason=reason))

        if id_ in self._outstanding:
            self._when_awake(fail)

    # ---- what the server sends ----

    def _from_server(self, event: Happening | Reply) -> None:
        world = self.world
        is_reply = not isinstance(event, _HAPPENINGS)
        if world.loss and (is_reply or isinstance(event, Heard | Delivered)) and world.loses():
            return
        pipe: Hashable = None
        if world.is_cluster:
            if is_reply:
                pipe = ("reply", getattr(event, "id", 0))
            elif isinstance(event, Delivered | PullIdle | PullEnded):
                pipe = event.pull
            else:
                pipe = "core" if isinstance(event, Heard | Announced) else "watch"
        watch = self.client.num_watches if isinstance(event, KeyChanged | WatchCaughtUp) else None

        def arrive() -> None:
            self._arrive(event, is_reply=is_reply, watch=watch)

        self.deliver(arrive, pipe)
        if isinstance(event, Heard | KeyChanged) and world.duplicates():
            self.deliver(arrive, pipe)

    def deliver(self, action: Callable[[], None], pipe: Hashable) -> None:
        """Let something arrive here after a while, in the pipe's order, if the connection lasts."""
        world = self.world
        connection = self._connection
        if not world.is_cluster:
            pipe = None
        at = max(self._down_at.get(pipe, 0.0), world.scheduler.now + world.delay())
        self._down_at[pipe] = at

        def arrive() -> None:
            if self._connection == connection and self.is_alive:
                if self.is_paused:
                    self._waiting.append(action)
                else:
                    action()

        world.scheduler.at(at, arrive)

    def _arrive(self, event: Happening | Reply, *, is_reply: bool, watch: int | None) -> None:
        if watch is not None and watch != self._num_watches:
            return
        if is_reply:
            id_: int = getattr(event, "id", 0)
            if id_ not in self._outstanding:
                return
            self._outstanding.discard(id_)
        elif isinstance(event, Heard) and event.instance == self.settings.instance:
            self.confirmed_at = max(self.confirmed_at, event.sent_at)
        elif isinstance(event, KeyChanged):
            self.world.checkers.hears(self, event.key, event.value, event.revision)
        if self.world.trace is not None:
            self.world.note_event(self, event)
        self._take(event)

    def answer_probe(self, asker: MemoryClient, id_: int) -> None:
        if self.is_connected:
            answer = Alive(id=id_, instance=self.settings.instance)
            self.world.scheduler.after(self.world.delay(), lambda: asker.send(answer))

    # ---- handlers ----

    def _after_hook(self, event: Entered | Flushed) -> None:
        """The user's own is opened or flushed: that takes about as long as a call."""
        duration_s = self.world.handler_duration(is_slow=False)
        self.world.scheduler.after(duration_s, lambda: self._when_awake(lambda: self._take(event)))

    def _take_calls(self) -> None:
        while self.is_alive and self.machine.num_callable:
            messages = self.machine.next_call(self.now)
            if messages is None:
                return
            self._flush_soon()
            self._begin(messages, is_taken=True)

    def _flush_soon(self) -> None:
        """Have what the machine gathered let out in the next round, as the edge does."""
        if not self._is_flushing:
            self._is_flushing = True
            self.world.scheduler.after(0.0, lambda: self._when_awake(self._flush))

    def _flush(self) -> None:
        self._is_flushing = False
        if self.is_alive:
            self.machine.flush(self.now)
            self._carry_out_all()

    def _begin(self, messages: tuple[Message, ...], *, is_taken: bool) -> None:
        """Call the handler; ``is_taken``: the edge took the call, else it was handed out."""
        world = self.world
        if world.trace is not None and is_taken:
            world.note(self, f"calls the handler for {[message.seq for message in messages]}")
        world.checkers.begins(self, messages)
        duration_s = world.handler_duration(is_slow=world.now < self.slow_until)

        def end() -> None:
            self._when_awake(lambda: self._end(messages, is_taken=is_taken))

        world.scheduler.after(duration_s, end)

    def _end(self, messages: tuple[Message, ...], *, is_taken: bool) -> None:
        """Apply the effects, one after the other, and say how the call ended."""
        world = self.world
        error: str | None = None
        seen_epoch: int | None = None
        for message in messages:
            if error is None and world.handler_fails(message):
                error = "chance"
            if error is not None:
                world.checkers.ends(self, message, is_handled=False)
                continue
            verdict, epoch = world.checkers.sink.apply(message)
            world.checkers.ends(self, message, is_handled=verdict is not Verdict.STALE)
            if verdict is Verdict.STALE:
                error, seen_epoch = "stale", epoch
        if error is not None:
            world.checkers.fails(self, messages)
        if error is None and is_taken and len(messages) == 1:
            following = self.machine.handled(messages[0], self.now)
            self._flush_soon()
            if following is not None:
                self._begin((following,), is_taken=True)
            return
        event = Handled(message=messages[0], error=error, seen_epoch=seen_epoch)
        if world.trace is not None:
            world.note_event(self, event)
        self._take(event)
