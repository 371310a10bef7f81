"""JetStream as one object: put together, started, driven by what arrives and by time, stopped.

It knows no sockets, clocks, threads or chance of its own. What arrives comes through
subscriptions on the bus; each call carries the reading of the clocks. Time alone is passed with
``advance`` at or after ``next_deadline``. Answers and deliveries go out through the bus while a
call runs.
"""

from __future__ import annotations

from ..routing.port import Bus, Instant
from ..store.port import Storage
from .api import Api
from .host import Host, RandomBelow, Report
from .model import Identity, Limits
from .registry import Registry


class JetStream:
    """The engine of one account.

    ``random`` gives an integer at or above 0 and below its argument. ``report`` takes events worth
    a log line: a name and facts, such as ``("stream_damaged", {"stream": "ORDERS", …})``.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        file: Storage,
        memory: Storage,
        random: RandomBelow,
        report: Report,
        identity: Identity | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._host = Host(
            bus,
            identity=identity or Identity(),
            limits=limits or Limits(),
            random=random,
            report=report,
        )
        self.registry = Registry(self._host, file=file, memory=memory)
        self.api = Api(self.registry)

    def start(self, now: Instant) -> None:
        """Recover all streams and consumers, then listen."""
        self._host.now = now
        self._host.run(self.registry.recover)
        self.api.start()

    def next_deadline(self) -> float | None:
        """Say at which monotonic second ``advance`` is wanted; None: not before something comes."""
        return self._host.next_deadline()

    def advance(self, now: Instant) -> None:
        """Do what is due by ``now``."""
        self._host.advance(now)

    def stop(self, now: Instant) -> None:
        """Answer waiting pulls with 409 Server Shutdown and close the stores."""
        self._host.now = now
        self.api.stop()
        self._host.run(self.registry.stop)
