"""A span per handler call, its parent from the message's headers."""

import sys

import pytest

from millstream_coordinator import Group, GroupError, Message

from .group_in_memory import NAME, RULE, STREAM, make, open_server, publish, virtual
from .members import running

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk comes with the test extra")

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def _provider() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)


@pytest.fixture(autouse=True)
def _empty() -> None:
    EXPORTER.clear()


def spans(kind: trace.SpanKind) -> list[ReadableSpan]:
    return [span for span in EXPORTER.get_finished_spans() if span.kind is kind]


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    identity: int = span.context.span_id
    return identity


def traced_headers() -> dict[str, str]:
    headers: dict[str, str] = {}
    tracer = trace.get_tracer("test")
    with tracer.start_as_current_span("publish", kind=trace.SpanKind.PRODUCER):
        propagate.inject(headers)
    return headers


@virtual
async def test_a_handler_call_is_a_span_under_the_publishers() -> None:
    server = open_server()
    publish(server, "a", 0, headers=traced_headers())
    seen: list[trace.SpanContext] = []

    async def handle(message: Message) -> None:
        seen.append(trace.get_current_span().get_span_context())
        if message.attempt == 1:
            raise ValueError("once")

    group, _ = make(server, handle, tracing=True)
    async with running(group):
        await server.until(lambda: len(seen) == 2)

    (published,) = spans(trace.SpanKind.PRODUCER)
    failed, handled = spans(trace.SpanKind.CONSUMER)
    assert published.context is not None
    assert [one.span_id for one in seen] == [span_id(failed), span_id(handled)]
    for span in (failed, handled):
        assert span.parent is not None
        assert span.parent.span_id == published.context.span_id
        assert span.attributes is not None
        assert span.attributes["messaging.consumer.group.name"] == NAME
        assert span.attributes["messaging.destination.partition.id"] == "0"
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert handled.attributes is not None
    assert handled.attributes["millstream.attempt"] == 2


@virtual
async def test_a_batch_links_to_the_spans_of_its_messages() -> None:
    server = open_server()
    for number in range(3):
        publish(server, f"k{number}", number, headers=traced_headers())
    count = 0

    async def handle(messages: list[Message]) -> None:
        nonlocal count
        count += len(messages)

    group = Group(server, stream=STREAM, name=NAME, partitions=1, tracing=True)
    group.batch_handler(key=RULE, max_messages=10)(handle)
    async with running(group):
        await server.until(lambda: count == 3)

    (span,) = spans(trace.SpanKind.CONSUMER)
    published = {one.context.span_id for one in spans(trace.SpanKind.PRODUCER) if one.context}
    assert {link.context.span_id for link in span.links} == published
    assert span.parent is None


def test_without_opentelemetry_tracing_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with pytest.raises(GroupError, match=r"pip install 'millstream\[otel\]'"):
        Group(open_server(), stream=STREAM, name=NAME, partitions=1, tracing=True)
