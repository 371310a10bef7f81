"""OpenTelemetry: a span per handler call, its parent from the message's headers. Opt-in.

``Group(tracing=True)`` needs the extra ``otel`` (opentelemetry-api); what becomes of spans is the
matter of whichever SDK the program sets up. On the publishing side `Publisher` takes
``inject=opentelemetry.propagate.inject``. A batch's span has no parent but links to its messages'.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .errors import GroupError
from .model import Message


class Tracing:
    """The spans of one group."""

    def __init__(self, group: str) -> None:
        """Raise GroupError when OpenTelemetry is not installed."""
        try:
            from opentelemetry import propagate, trace  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise GroupError(
                "tracing needs OpenTelemetry: pip install 'millstream[otel]'"
            ) from error
        self._propagate = propagate
        self._trace = trace
        self._tracer = trace.get_tracer("millstream")
        self._group = group

    @contextmanager
    def around(self, messages: Sequence[Message]) -> Iterator[None]:
        """Make the span of one handler call; what the call raises is recorded in it."""
        first = messages[0]
        attributes: dict[str, str | int] = {
            "messaging.system": "nats",
            "messaging.operation.type": "process",
            "messaging.consumer.group.name": self._group,
            "messaging.destination.name": first.subject,
            "messaging.destination.partition.id": str(first.partition),
            "messaging.message.id": str(first.seq),
            "millstream.epoch": first.epoch,
            "millstream.attempt": first.attempt,
        }
        parent = None
        links = []
        if len(messages) == 1:
            parent = self._propagate.extract(dict(first.headers))
        else:
            attributes["messaging.batch.message_count"] = len(messages)
            for message in messages:
                context = self._propagate.extract(dict(message.headers))
                span = self._trace.get_current_span(context).get_span_context()
                if span.is_valid:
                    links.append(self._trace.Link(span))
        with self._tracer.start_as_current_span(
            f"process {self._group}",
            context=parent,
            kind=self._trace.SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
        ):
            yield
