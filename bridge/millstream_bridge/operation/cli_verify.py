"""``millstream bridge verify``: the proof that both sides hold the same."""

from typing import Any

import typer

from ..model import Proof, Side
from ..project.file import Project
from ..project.routes import current_routes
from ..proof.verify import verify as prove
from .console import CHECK_FAILED, AsJson, ReportFile, command, project_document, say
from .process import run_loop, write_report


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "verify")
    def verify(project: Project, report: ReportFile = None, as_json: AsJson = False) -> None:
        """Compare both sides record by record; exit 1 and name the first difference if any."""
        proofs = run_loop(_prove(project))
        equal = all(proof.equal for proof in proofs)
        documents = [proof_summary(proof) for proof in proofs]
        summary = documents[0]
        if project.is_file:
            summary = project_document("verify", documents, equal=equal)
        write_report(report, summary)
        if as_json:
            say(summary, "")
        else:
            for proof in proofs:
                _print_proof(proof)
        if not equal:
            raise typer.Exit(CHECK_FAILED)


async def _prove(project: Project) -> list[Proof]:
    """One route after the other: each has both sides to itself."""
    return [
        await prove(
            kafka=project.kafka,
            nats=project.nats,
            route=route,
            kafka_options=dict(project.kafka_options),
        )
        for route in await current_routes(project)
    ]


def proof_summary(proof: Proof) -> dict[str, Any]:
    """The JSON form of a proof, schema ``millstream.bridge.verify/1``."""
    difference = proof.difference
    return {
        "schema": "millstream.bridge.verify/1",
        "topic": proof.topic,
        "stream": proof.stream,
        "equal": proof.equal,
        "records": proof.records,
        "foreign": proof.foreign,
        "older": proof.older,
        "seconds": round(proof.seconds, 3),
        "difference": None
        if difference is None
        else {
            "kafka_partition": difference.kafka_partition,
            "offset": difference.offset,
            "seq": difference.seq,
            "what": difference.what,
        },
        "partitions": {
            str(number): {
                "equal": partition.is_equal,
                "kafka": _side(partition.kafka),
                "nats": _side(partition.nats),
            }
            for number, partition in sorted(proof.partitions.items())
        },
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "count": side.count,
        "first_offset": side.first_offset,
        "last_offset": side.last_offset,
        "digest": side.digest,
    }


def _print_proof(proof: Proof) -> None:
    from rich.console import Console  # noqa: PLC0415 - 0.1 s that only tables need
    from rich.table import Table  # noqa: PLC0415

    table = Table("PARTITION", "RECORDS", "FIRST", "LAST", "NATS RECORDS", "DIGEST", "EQUAL")
    for number, partition in sorted(proof.partitions.items()):
        kafka, nats = partition.kafka, partition.nats
        first, last = kafka.first_offset, kafka.last_offset
        table.add_row(
            str(number),
            str(kafka.count),
            "-" if first is None else str(first),
            "-" if last is None else str(last),
            str(nats.count),
            kafka.digest[:16],
            "yes" if partition.is_equal else "NO",
        )
    Console().print(table)
    rate = proof.records / proof.seconds if proof.seconds else 0.0
    typer.echo(
        f"{'equal' if proof.equal else 'DIFFERENT'}: {proof.records} records"
        f" in {proof.seconds:.1f} s ({rate:,.0f}/s), {proof.foreign} foreign messages"
    )
    if (difference := proof.difference) is not None:
        at = "" if difference.seq is None else f" (seq {difference.seq})"
        typer.echo(
            f"first difference: partition {difference.kafka_partition}"
            f" offset {difference.offset}{at}: {difference.what}"
        )
