"""The ways back of a project's routes in one process, each on its own.

One route's failure does not stop the others: it is told, and its progress keeps it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..back.progress import BackReport
from ..back.runner import BackBridge
from ..errors import BridgeError
from ..kafka.sink import Position
from ..model import Route
from ..project.file import Project


class BackFleet:
    """All ways back of one run. ``tell`` gets one line per event.

    ``on_ready`` is called once, with those that go on when all have begun or failed.
    """

    def __init__(
        self,
        project: Project,
        routes: Sequence[Route],
        *,
        tell: Callable[[str], None],
        on_ready: Callable[[list[BackBridge]], None],
        to_topic: str | None = None,
        everything: bool = False,
        from_seq: int | None = None,
    ) -> None:
        self.bridges = [
            BackBridge(
                kafka=project.kafka,
                nats=project.nats,
                route=route,
                topic=to_topic,
                everything=everything,
                from_seq=from_seq,
                kafka_options=project.kafka_options,
                on_ready=partial(self._ready, route, to_topic or route.topic),
            )
            for route in routes
        ]
        self._is_project = project.is_file
        self._tell = tell
        self._on_ready = on_ready
        self._waiting = {route.name for route in routes}
        self._failure: BridgeError | None = None

    def stop(self) -> None:
        """End each as `BackBridge.stop` does."""
        for bridge in self.bridges:
            bridge.stop()

    async def run(self, *, stop_at_end: bool) -> list[BackReport | None]:
        """Run until `stop`, or all have ended; the reports in their order, None of a failed one.

        Raises what ``on_ready`` raised.
        """
        async with asyncio.TaskGroup() as tasks:
            runs = [
                tasks.create_task(self._run_one(it, stop_at_end), name=it.name)
                for it in self.bridges
            ]
        if self._failure is not None:
            raise self._failure
        return [it.result() for it in runs]

    async def _run_one(self, bridge: BackBridge, stop_at_end: bool) -> BackReport | None:
        try:
            return await bridge.run(stop_at_end=stop_at_end)
        except BridgeError as error:
            if self._is_project:
                self._tell(f"back {bridge.route.stream} → {bridge.topic} stopped: {error}")
            self._has_begun(bridge.route)
            return None

    def _ready(self, route: Route, topic: str, positions: Mapping[int, Position]) -> None:
        at = ", ".join(f"{it.stream} sequence {it.next_seq}" for it in positions.values())
        self._tell(f"back {route.stream} → {topic} is ready and begins with {at}")
        self._has_begun(route)

    def _has_begun(self, route: Route) -> None:
        """Or failed."""
        if route.name in self._waiting:
            self._waiting.discard(route.name)
            going_on = [it for it in self.bridges if it.progress.error is None]
            if not self._waiting and going_on:
                try:
                    self._on_ready(going_on)
                except BridgeError as error:  # whoever waits for it would wait for ever
                    self._failure = error
                    self.stop()
