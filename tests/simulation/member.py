"""A simulated process: one group machine, its connection, its handlers, and what may befall it.

The connection is two pipes in order, to the server and back, each with a delay. A cut loses what is
under way in both and the server forgets the client; a pause (SIGSTOP) loses nothing: what arrives
waits, timers and handlers stand still, and all of it is there on waking. A suspension (a virtual
machine that is stopped and resumed) stops the monotonic clock as well and breaks the connection
without the member noticing: no clock of its own can fence it, only the sink. A kill ends it all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from millstream_coordinator.machine.group import GroupMachine, Phase
from millstream_coordinator.memory import MemoryClient
from millstream_coordinator.model import MemberSettings, Message
from millstream_coordinator.ports import (
    Ack,
    Alive,
    ClosePull,
    Command,
    Delivered,
    Disconnected,
    Failed,
    Failure,
    Handle,
    Handled,
    Happening,
    Heard,
    KeyChanged,
    Listen,
    OpenPull,
    Reconnected,
    Reply,
    Stop,
    Tell,
    Watch,
)
from millstream_coordinator.sinks.sinks import Verdict

if TYPE_CHECKING:
    from .world import World

_HAPPENINGS = (Delivered, Heard, KeyChanged)


class SimulatedClient(MemoryClient):
    """Answers a probe only when its process gets round to it."""

    member: SimulatedMember

    def probed(self, asker: MemoryClient, id_: int) -> None:
        self.member.deliver(lambda: self.member.answer_probe(asker, id_))


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
        self._suspended_at: float | None = None
        self.slow_until = 0.0
        self.confirmed_at = float("-inf")
        """When the newest heartbeat that came back was sent: what the member may rely on."""
        self._waiting: list[Callable[[], None]] = []
        self._outstanding: set[int] = set()
        self._connection = 0
        self._up_at = 0.0
        self._down_at = 0.0
        self._tick_at = float("inf")

    @property
    def now(self) -> float:
        """The member's own monotonic clock."""
        return self.world.now - self.clock_lag_s

    # ---- life ----

    def start(self) -> None:
        self.world.server.attach(self.client)
        self._run(lambda: self.machine.start(self.now))

    def stop(self) -> None:
        self._when_awake(lambda: self._run(lambda: self.machine.stop(self.now)))

    def kill(self) -> None:
        self.is_alive = False
        self._waiting.clear()
        self.world.server.detach(self.client)

    def pause(self) -> None:
        self.is_paused = True

    def suspend(self) -> None:
        """Pause, with the clock, and with a connection that is not there any more."""
        if self.is_paused or not self.is_connected:
            return
        self.is_paused = True
        self._suspended_at = self.world.now
        self.is_half_open = True
        self._connection += 1
        self.world.server.detach(self.client)

    def wake(self) -> None:
        if self._suspended_at is not None:
            self.clock_lag_s += self.world.now - self._suspended_at
            self._suspended_at = None
        self.is_paused = False
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            if self.is_alive:
                action()
        if self.is_alive:
            self._tick()

    def disconnect(self) -> None:
        """Lose the connection: what is under way is lost, and both sides notice."""
        if not self.is_alive or not self.is_connected:
            return
        self.is_connected = False
        self.is_half_open = False
        self._connection += 1
        self.world.server.detach(self.client)
        self._when_awake(self._notice_disconnect)

    def reconnect(self) -> None:
        if not self.is_alive or self.is_connected or self.world.is_server_down:
            return
        self.is_connected = True
        self._up_at = self._down_at = self.world.now
        self.world.server.attach(self.client)
        self._when_awake(lambda: self._take(Reconnected()))

    def _notice_disconnect(self) -> None:
        outstanding, self._outstanding = sorted(self._outstanding), set()
        self._take(Disconnected())
        for id_ in outstanding:
            self._take(Failed(id=id_, reason=Failure.DISCONNECTED))

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
        self._run(lambda: self.machine.receive(event, self.now))

    def _run(self, step: Callable[[], None]) -> None:
        if not self.is_alive:
            return
        step()
        for command in self.machine.take_commands():
            self._carry_out(command)
        self._arrange_tick()

    def _arrange_tick(self) -> None:
        deadline = max(self.machine.next_deadline, self.now)
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.world.scheduler.at(deadline + self.clock_lag_s, lambda: self._on_timer(deadline))

    def _on_timer(self, deadline: float) -> None:
        if self._tick_at == deadline:
            self._tick_at = float("inf")
            if not self.is_paused:
                now = max(self.now, deadline)  # never early for lack of a last binary digit
                self._run(lambda: self.machine.tick(now))

    def _tick(self) -> None:
        self._run(lambda: self.machine.tick(self.now))

    # ---- commands ----

    def _carry_out(self, command: Command) -> None:
        match command:
            case Handle():
                self._begin(command.message)
            case Tell():
                self.world.told(self, command.event)
            case Stop():
                if command.error is not None:
                    self.world.checkers.fail(f"{self.settings.instance} ended: {command.error!r}")
                self.kill()
            case _:
                if isinstance(command, Ack) and not command.is_progress:
                    self.world.checkers.acks(self, command.message)
                self._send(command)

    def _send(self, command: Command) -> None:
        world = self.world
        id_: int | None = getattr(command, "id", None)
        if id_ is not None:
            self._outstanding.add(id_)
            if not self.is_connected:
                world.scheduler.after(0.0, lambda: self._fail(id_, Failure.DISCONNECTED))
                return
            timeout_s = self.settings.timing.request_timeout_s
            world.scheduler.after(timeout_s, lambda: self._fail(id_, Failure.TIMEOUT))
        is_kept = isinstance(command, Watch | OpenPull | ClosePull | Listen)
        if not self.is_connected or self.is_half_open or (not is_kept and world.loses()):
            return  # what is kept, an adapter repeats until it gets through
        connection = self._connection
        self._up_at = max(self._up_at, world.now + world.delay())

        def arrive() -> None:
            if self.is_alive and self._connection == connection and not world.is_server_down:
                world.execute(self.client, command)

        world.scheduler.at(self._up_at, arrive)

    def _fail(self, id_: int, reason: Failure) -> None:
        def fail() -> None:
            if id_ in self._outstanding:
                self._outstanding.discard(id_)
                self._take(Failed(id=id_, reason=reason))

        self._when_awake(fail)

    # ---- what the server sends ----

    def _from_server(self, event: Happening | Reply) -> None:
        is_reply = not isinstance(event, Happening)
        if (is_reply or isinstance(event, Heard | Delivered)) and self.world.loses():
            return
        self.deliver(lambda: self._arrive(event))
        if isinstance(event, Heard | KeyChanged) and self.world.duplicates():
            self.deliver(lambda: self._arrive(event))

    def deliver(self, action: Callable[[], None]) -> None:
        """Let something arrive here after a while, in order, if the connection lasts."""
        connection = self._connection
        self._down_at = max(self._down_at, self.world.now + self.world.delay())

        def arrive() -> None:
            if self.is_alive and self._connection == connection:
                self._when_awake(action)

        self.world.scheduler.at(self._down_at, arrive)

    def _arrive(self, event: Happening | Reply) -> None:
        if isinstance(event, Heard):
            if event.instance == self.settings.instance:
                self.confirmed_at = max(self.confirmed_at, event.sent_at)
        elif not isinstance(event, Happening):
            if event.id not in self._outstanding:
                return
            self._outstanding.discard(event.id)
        self._take(event)

    def answer_probe(self, asker: MemoryClient, id_: int) -> None:
        if self.is_connected:
            answer = Alive(id=id_, instance=self.settings.instance)
            self.world.scheduler.after(self.world.delay(), lambda: asker.send(answer))

    # ---- handlers ----

    def _begin(self, message: Message) -> None:
        world = self.world
        world.checkers.begins(self, message)
        duration_s = world.handler_duration(is_slow=world.now < self.slow_until)
        world.scheduler.after(duration_s, lambda: self._when_awake(lambda: self._end(message)))

    def _end(self, message: Message) -> None:
        world = self.world
        if not self.is_alive:
            return
        if world.handler_fails():
            world.checkers.ends(self, message, is_handled=False)
            self._take(Handled(message=message, error="chance"))
            return
        verdict, epoch = world.checkers.sink.apply(message)
        world.checkers.ends(self, message, is_handled=verdict is not Verdict.STALE)
        if verdict is Verdict.STALE:
            self._take(Handled(message=message, error="stale", seen_epoch=epoch))
        else:
            self._take(Handled(message=message))

    @property
    def is_done(self) -> bool:
        return self.machine.phase is Phase.GONE
