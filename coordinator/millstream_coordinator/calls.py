"""Handler calls: a bounded set of long-lived tasks takes what the machine hands out.

There is no task and no machine step per message. A **runner** takes the next message from the
machine, which looks at the fence before it gives one, awaits the handler, and reports; the machine
answers a good report with the next message at once, and gathers the acks until the loop's round
ends. One runner is woken when there is work; when a round of the loop passes in which no call ended
and work is left, others are woken as well. So handlers that never wait are served
by one runner in turn, and those that do run beside each other one round later. After SLICE_S
without a wait a runner lets the loop run, so that heartbeats go out however fast handlers are.

**Functions** that are not async run in threads of their own, as many as there may be calls; as
daemons, so that a process can end though one of them never returns.

**Deadline.** A call that runs past its deadline is told: an async handler is cancelled (whatever it
awaits raises CancelledError), a function in a thread finds `Message.is_overdue` true. The group is
told as well (`HandlerOverdue`). The message's lane waits until the call has really ended, however
long that takes: to begin another call of the same key beside it would break the key's order, and
giving the message up would let it take effect afterwards. An async call that its deadline ended is
a failed attempt; a call that returns all the same is a good one, its effect has taken place.
`Message.extend` begins the deadline anew.

**Context variables** that a call sets are gone with it: each call has a copy of the context that
the runner has, in a thread as well.

A cancellation that comes from elsewhere ends the call and the runner: that is how a member stops.
"""

import asyncio
import inspect
import queue
import threading
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any, Protocol

from .events import HandlerOverdue
from .model import Message
from .ports import Handled
from .sinks.contract import StaleEpoch
from .stats import Counters

Handler = Callable[[Any], Awaitable[None] | None]
"""Takes a message, or a list of them; async, or a plain function (in a thread)."""

SLICE_S = 0.002


class Desk(Protocol):
    """Where calls come from and are reported: the group's side."""

    def now(self) -> float:
        """The machine's clock."""

    def num_callable(self) -> int:
        """How many calls there is work and room for."""

    def next_call(self, now: float) -> tuple[Message, ...] | None:
        """Take the messages of a call that begins now."""

    def may_begin(self, message: Message, now: float) -> bool:
        """Whether a call that was handed out may still begin."""

    def handled(self, message: Message, now: float) -> Message | None:
        """Take a good report; the answer is the next message, if there is one."""

    def report(self, event: Handled) -> None:
        """Take any other report."""

    def tell(self, event: HandlerOverdue) -> None:
        """Tell the world."""

    def state_of(self, partition: int, epoch: int) -> Any:
        """What the user keeps for a partition."""


class Calls:
    """The runners of one member."""

    def __init__(
        self,
        desk: Desk,
        handler: Handler,
        counters: Counters,
        *,
        limit: int,
        is_batch: bool,
        deadline_s: float | None,
        spawn: Callable[[Any, str], None],
        has_state: bool = False,
        around: Callable[[Sequence[Message]], AbstractContextManager[None]] | None = None,
    ) -> None:
        """``around`` makes a context manager for a call (a span); to be made on the loop."""
        self._desk = desk
        self._handler = handler
        self._counters = counters
        self._limit = limit
        self._is_batch = is_batch
        self._deadline_s = deadline_s
        self._spawn = spawn
        self._around = around
        self._threads = None if is_async(handler) else Threads(limit)
        self._todo: deque[tuple[Message, ...]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._num_runners = 0
        self._num_ended = 0
        self._is_watching = False
        self._is_direct = (
            self._threads is None and not is_batch and deadline_s is None and around is None
        )
        self._has_calls = has_state or not self._is_direct
        self._loop = asyncio.get_running_loop()

    def add(self, messages: tuple[Message, ...]) -> None:
        """Take messages for one call that the machine handed out by itself."""
        self._todo.append(messages)
        self.notice()

    def notice(self) -> None:
        """See whether there is something to do."""
        if not self._is_watching and (self._todo or self._desk.num_callable()):
            self._is_watching = True
            self._wake()
            self._loop.call_soon(self._watch, self._num_ended)

    def _watch(self, num_ended: int) -> None:
        """See, once per round of the loop, whether what there is to do gets done."""
        num_left = len(self._todo) + self._desk.num_callable()
        if not num_left:
            self._is_watching = False
            return
        if num_ended == self._num_ended:
            for _ in range(num_left):
                if not self._wake():
                    break
        self._loop.call_soon(self._watch, self._num_ended)

    def close(self) -> None:
        """Let no thread begin anything any more."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _wake(self) -> bool:
        """Wake a runner, or start one; False: all there may be are at work."""
        while self._idle:
            waiting = self._idle.pop()
            if not waiting.done():
                waiting.set_result(None)
                return True
        if self._num_runners >= self._limit:
            return False
        self._num_runners += 1
        self._spawn(self._run(), "handler")
        return True

    async def _run(self) -> None:
        desk, todo = self._desk, self._todo
        while True:
            at = desk.now()
            if todo:
                messages = todo.popleft()
                if desk.may_begin(messages[0], at):
                    await self._serve(messages, at)
                else:
                    desk.report(Handled(message=messages[0], is_called=False))
                continue
            given = desk.next_call(at)
            if given is not None:
                await self._serve(given, at)
                continue
            waiting = self._loop.create_future()
            self._idle.append(waiting)
            await waiting

    async def _serve(self, messages: tuple[Message, ...], at: float) -> None:
        """Call the handler, and go on with what the machine gives for each good call."""
        desk, handler, counters = self._desk, self._handler, self._counters
        since = at
        while True:
            message = messages[0]
            began = at
            event = None
            if self._has_calls:
                self._mark(messages, _Call(self, message))
            try:
                if self._is_direct:
                    await _alone(handler(message))  # type: ignore[arg-type]
                else:
                    await self._call(messages)
            except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001 - it is told
                event = self._failed(message, raised)
            at = desk.now()
            self._num_ended += 1
            counters.called(at - began, len(messages) if event is None else 0)
            if self._has_calls:
                self._mark(messages, None)
            if event is not None or self._is_batch:
                desk.report(event or Handled(message=message))
                return
            following = desk.handled(message, at)
            if following is None:
                return
            messages = (following,)
            if at - since > SLICE_S:
                await asyncio.sleep(0)
                since = at = desk.now()
                if not desk.may_begin(following, at):
                    desk.report(Handled(message=following, is_called=False))
                    return

    def _mark(self, messages: tuple[Message, ...], call: "_Call | None") -> None:
        for message in messages:
            message.call = call

    def _failed(self, message: Message, raised: BaseException) -> Handled:
        if isinstance(raised, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise raised
            # Something inside the handler was cancelled, not the call: as good as any other error.
            return Handled(message=message, error="CancelledError")
        if isinstance(raised, StaleEpoch):
            self._counters.refused += 1
            return Handled(message=message, error=str(raised), seen_epoch=raised.seen_epoch)
        return Handled(message=message, error=f"{type(raised).__name__}: {raised}")

    async def _call(self, messages: tuple[Message, ...]) -> None:
        if self._around is None:
            await self._call_in_time(messages)
            return
        with self._around(messages):
            await self._call_in_time(messages)

    async def _call_in_time(self, messages: tuple[Message, ...]) -> None:
        call = messages[0].call
        assert isinstance(call, _Call)
        given = list(messages) if self._is_batch else messages[0]
        if self._threads is not None:
            with call:
                result = await self._loop.run_in_executor(
                    self._threads, copy_context().run, self._handler, given
                )
                if inspect.iscoroutine(result):
                    # A plain function that only makes a coroutine, as a lambda does.
                    await _alone(result)
                elif inspect.isawaitable(result):
                    await result
            return
        with call:
            scope = asyncio.timeout(self._deadline_s)
            try:
                async with scope:
                    call.scope = scope
                    await _alone(self._handler(given))  # type: ignore[arg-type]
            except TimeoutError as error:
                if scope.expired():
                    raise HandlerDeadlinePassed(self._deadline_s or 0.0) from error
                raise


@types.coroutine
def _alone(call: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await a call in a context of its own, without a task of its own."""
    run = copy_context().run
    step: Callable[[Any], Any] = call.send
    value: Any = None
    while True:
        try:
            awaited = run(step, value)
        except StopIteration:
            return
        try:
            value = yield awaited
            step = call.send
        except BaseException as error:  # noqa: BLE001 - it is the call's
            step, value = call.throw, error


class HandlerDeadlinePassed(Exception):
    """A handler call was cancelled by its deadline."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"not done within {deadline_s:g} s")
        self.deadline_s = deadline_s


class _Call:
    """One call, as its messages see it; a context manager around the handler's time."""

    __slots__ = ("_calls", "_message", "_timer", "is_overdue", "scope")

    def __init__(self, calls: Calls, message: Message) -> None:
        self._calls = calls
        self._message = message
        self._timer: asyncio.TimerHandle | None = None
        self.scope: asyncio.Timeout | None = None
        self.is_overdue = False

    @property
    def state(self) -> Any:
        return self._calls._desk.state_of(self._message.partition, self._message.epoch)

    def extend(self) -> None:
        loop = self._calls._loop
        try:
            is_here = asyncio.get_running_loop() is loop
        except RuntimeError:
            is_here = False
        if is_here:
            self._extend()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._extend)

    def _extend(self) -> None:
        deadline_s = self._calls._deadline_s
        if self._timer is None or deadline_s is None or self.is_overdue:
            return
        self._timer.cancel()
        self._timer = self._calls._loop.call_later(deadline_s, self._pass)
        if self.scope is not None:
            self.scope.reschedule(self._calls._loop.time() + deadline_s)

    def _pass(self) -> None:
        self.is_overdue = True
        message = self._message
        self._calls._desk.tell(
            HandlerOverdue(
                partition=message.partition,
                seq=message.seq,
                attempt=message.attempt,
                deadline_s=self._calls._deadline_s or 0.0,
            )
        )

    def __enter__(self) -> None:
        if self._calls._deadline_s is not None:
            self._timer = self._calls._loop.call_later(self._calls._deadline_s, self._pass)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_async(function: Any) -> bool:
    """Whether calling it gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )


def check_handler(function: Any) -> None:
    """Refuse, with ValueError, what no call would run: its messages would be acked all the same."""
    inner = getattr(function, "__call__", None)  # noqa: B004 - an object that is called
    if inner is None:
        raise ValueError(f"a handler is a function, not {function!r}")
    if any(
        inspect.isgeneratorfunction(it) or inspect.isasyncgenfunction(it)
        for it in (function, inner)
    ):
        raise ValueError("a handler must not yield: calling it would only make a generator")


class Threads(Executor):
    """Up to so many daemon threads. The standard pool's keep a process from ending."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_threads = 0
        self._num_idle = 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, function: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        """Have it called in a thread."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **more)
            except StopIteration as error:
                future.set_exception(RuntimeError(f"StopIteration: {error}"))
            except BaseException as error:  # noqa: BLE001 - it is the caller's, through the future
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._num_idle:
                self._num_idle -= 1
            elif self._num_threads < self._limit:
                self._num_threads += 1
                threading.Thread(
                    target=self._run, name=f"handler {self._num_threads}", daemon=True
                ).start()
        self._work.put(work)
        return future

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            with self._lock:
                self._num_idle += 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads that are idle; a call under way goes on until it returns."""
        for _ in range(self._limit):
            self._work.put(None)
