"""OpenTelemetry's instrumentation sees calls and streams, of both clients."""

import asyncio

import pytest
from harness import eventually
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient, aio_client_interceptors
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pgmq_grpc import AsyncClient, Client

METHODS = {f"/pgmq.v1.QueueService/{method}" for method in ("Send", "Consume", "Produce", "Watch")}


@pytest.fixture(scope="module")
def exporter():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def test_threads_are_traced(exporter, name):
    exporter.clear()
    instrumentor = GrpcInstrumentorClient()
    instrumentor.instrument()
    try:
        with Client() as client:
            queue = client.queue(name)
            queue.send(1)
            with queue.watch() as events, queue.producer() as producer, queue.consume() as messages:
                producer.send(2)
                assert events.receive(30).queue == name
                assert messages.receive(30).delete() == "DONE"
    finally:
        instrumentor.uninstrument()
    # A watch that is traced ends with the channel, a moment later.
    eventually(lambda: {span.name for span in exporter.get_finished_spans()} == METHODS)


async def test_tasks_are_traced(exporter, name):
    exporter.clear()
    async with AsyncClient(interceptors=aio_client_interceptors()) as client:
        queue = client.queue(name)
        await queue.send(1)
        async with queue.watch() as events, queue.producer() as producer, queue.consume() as messages:
            await producer.send(2)
            assert (await events.receive(30)).queue == name
            assert await (await messages.receive(30)).delete() == "DONE"
    # Spans end in callbacks, a moment later.
    await asyncio.to_thread(eventually, lambda: {span.name for span in exporter.get_finished_spans()} == METHODS)
