"""One bridge of the storm in a process of its own; all it is to know comes as JSON in argv[1].

``guard`` is ``full`` for the bridge as it is. The control arms weaken what protects the stream, to
show that the storm is one: ``sequence`` expects a sequence on every frame and knows no frame before
its own; ``none`` publishes plainly. It ends when its standard input does. Prints its report as one
JSON line. Exit codes: the error's own, 0 for a good end.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from functools import partial
from typing import Any

import uvloop

from millstream_bridge import Bridge, Route
from millstream_bridge.errors import BridgeError
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.moving.chain import ChainPublisher
from millstream_bridge.moving.checkpoint import CheckpointPublisher
from millstream_bridge.moving.dense import DensePublisher
from millstream_bridge.moving.window import Window
from millstream_bridge.ports import Publisher
from millstream_bridge.records.mapping import Mapping
from tests.bridge.windows import PlainSequenceWindow

FULL, SEQUENCE, NONE = "full", "sequence", "none"
STALL_S = 1.0


class UnguardedWindow(PlainSequenceWindow):
    """Frames that the server stores wherever they come."""

    def guard(self, frame: int) -> str:
        return f"Nats-Msg-Id: {self.session}-{frame}\r\n"


WINDOWS: dict[str, type[Window]] = {
    FULL: Window,
    SEQUENCE: PlainSequenceWindow,
    NONE: UnguardedWindow,
}


def publisher(guard: str, connection: Connection, mapping: Mapping) -> Publisher:
    """What the bridge would take itself, but sooner tired of waiting, and guarded as told."""
    chain = partial(ChainPublisher, window_type=WINDOWS[guard], stall_s=STALL_S)
    if mapping.route.mode == "dense":
        return DensePublisher(connection, mapping, make_chain=chain)
    if mapping.route.shared:
        return CheckpointPublisher(connection, mapping, stall_s=STALL_S)
    return chain(connection, mapping)


async def run(told: dict[str, Any]) -> int:
    """One run; its exit code."""
    bridge = Bridge(
        kafka=told["kafka"],
        nats=told["nats"],
        route=Route(**told["route"]),
        stand_back_s=told["stand_back_s"],
        make_publisher=partial(publisher, told["guard"]),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bridge.stop)
    try:
        report = await bridge.run(stop_at_end=told["stop_at_end"])
    except BridgeError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    print(json.dumps(asdict(report)), flush=True)
    return 0


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(run(json.loads(sys.argv[1])))
    os._exit(code)
