"""A broker as a process: logging, loop, signals, the end of its parent.

INT, TERM and USR2 end it. USR2 is nats-server's lame duck, which asks clients one by one to go
elsewhere; with one node there is nowhere to go. HUP would reload a configuration file, and there is
none. USR1 reopens the log file after somebody has moved it away.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from ..errors import StartError
from .options import VERSION, ServerOptions
from .server import Broker, core_name

START_ERROR = 3
_HELD_LINES_MAX = 1000
_COLLECT_AFTER = (10_000, 10, 10)
"""So many more objects made than freed; then so many collections of the next younger ones."""

logger = logging.getLogger("millstream.broker")

_LEVELS = {logging.DEBUG: "DBG", logging.INFO: "INF", logging.WARNING: "WRN", logging.ERROR: "ERR"}


class LineFormatter(logging.Formatter):
    """Lines as nats-server writes them: ``[pid] date time [INF] text``."""

    def __init__(self, *, has_time: bool) -> None:
        super().__init__()
        self._has_time = has_time
        self._pid = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        """One line, a traceback after it where there is one."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        stamp = ""
        if self._has_time:
            date = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(record.created))
            stamp = f" {date}.{int(record.created % 1 * 1e6):06d}"
        return f"[{self._pid}]{stamp} [{_LEVELS.get(record.levelno, 'INF')}] {text}"


def run(given: dict[str, Any]) -> int:
    """Run a broker with the flags given until a signal comes; returns the exit code."""
    given = dict(given)
    end_with_stdin = given.pop("end_with_stdin", False)
    trace = given.pop("trace", False)
    debug = given.pop("debug", False) or trace
    logtime, log_file = given.pop("logtime", True), given.pop("log_file", None)
    if given.get("jetstream") and "store_dir" not in given:
        given["store_dir"] = Path(tempfile.gettempdir(), "millstream")
    try:
        _set_up_logging(log_file, debug=debug, logtime=logtime)
        options = ServerOptions(**given)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(options, end_with_stdin=end_with_stdin))
    except StartError as error:
        _drop_held_lines()
        print(f"millstream broker: {error}", file=sys.stderr)  # noqa: T201 - the command's answer
        return START_ERROR
    finally:
        logging.shutdown()
    return 0


def _set_up_logging(log_file: Path | None, *, debug: bool, logtime: bool) -> None:
    handler: logging.Handler
    if log_file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            handler = logging.FileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise StartError(f"log file {log_file}", os.strerror(error.errno or 0)) from error
    handler.setFormatter(LineFormatter(has_time=logtime))
    if log_file is None:
        # A start that fails is one line on standard error: what was said before is held back.
        handler = MemoryHandler(_HELD_LINES_MAX, flushLevel=logging.WARNING, target=handler)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


def _let_lines_out() -> None:
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, MemoryHandler) and handler.target is not None:
            handler.flush()
            root.handlers[:] = [handler.target]


def _drop_held_lines() -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, MemoryHandler):
            handler.buffer.clear()


def _reopen_log_file() -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            try:
                file = Path(handler.baseFilename).open("a", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                logger.warning(
                    "log file %s: %s; going on with the one before",
                    handler.baseFilename,
                    os.strerror(error.errno or 0),
                    extra={"event": "log_file_kept"},
                )
                continue
            before = handler.setStream(file)
            if before is not None:
                before.close()
            logger.info("File log re-opened", extra={"event": "log_file_reopened"})


def _say_nothing_to_reload() -> None:
    logger.warning("No configuration file to reload", extra={"event": "nothing_to_reload"})


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _calm_collector() -> None:
    """Have the cycle collector stop the server rarely.

    What a server keeps goes by reference counts. Connections, streams and consumers that are over
    leave small cycles: a stream drops its messages itself. A look at all that is kept holds up all
    clients, for tens of milliseconds at 100,000 subjects.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


async def _serve(options: ServerOptions, *, end_with_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    handlers = {
        signal.SIGINT: stopping.set,
        signal.SIGTERM: stopping.set,
        signal.SIGUSR2: stopping.set,
        signal.SIGUSR1: _reopen_log_file,
        signal.SIGHUP: _say_nothing_to_reload,
    }
    for number, handle in handlers.items():
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, handle)
    logger.info("Starting millstream broker", extra={"event": "starting"})
    logger.info("  Version: %s (nats-server's behaviour)", VERSION, extra={"event": "version"})
    logger.info("  core: %s", core_name(), extra={"event": "core"})
    async with Broker(options=options):
        _let_lines_out()
        _calm_collector()
        if end_with_stdin:
            _watch_stdin(loop, stopping)
        await stopping.wait()
        logger.info("Initiating Shutdown...", extra={"event": "stopping"})
    logger.info("Server Exiting..", extra={"event": "stopped"})


def _watch_stdin(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """Stop at the end of standard input: it ends with the parent, however the parent went.

    A thread, because the loop can't wait for files and terminals alike.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 65_536):
                pass
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stopping.set)

    threading.Thread(target=watch, name="stdin", daemon=True).start()
