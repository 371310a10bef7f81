"""``millstream bridge verify``: the proof that both sides hold the same."""

import asyncio
import base64
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from millstream_coordinator.operation.process import CHECK_FAILED, Stopper, unless_stopped
from millstream_coordinator.operation.texts import show_table

from ..errors import BridgeError, ConfigurationError, Unreachable
from ..model import Record, Route
from ..project.file import Project
from ..project.routes import current_routes
from ..proof.parts import parts_of
from ..proof.values import Difference, Proof, Side
from ..proof.verify import ROUND_S, verify as prove, verify_online
from .console import (
    AsJson,
    ReportFile,
    command,
    give_report,
)
from .process import run_loop, tell

_SHOWN_BYTES = 24
_APART = {
    "foreign": "foreign messages",
    "older": "stored records that Kafka no longer has",
    "parked": "parked",
    "skipped": "skipped",
    "replayed": "replayed",
    "returned": "came back from NATS",
    "unpaired": "of these could not be compared, for their message is gone",
    "expired": "may have been removed by the stream's own limits",
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(
        app,
        "verify",
        examples="""
            verify --project project.toml
            verify --project project.toml --sample 20
            verify --project project.toml --online --every 60
        """,
    )
    def verify(
        project: Project,
        sample: Annotated[
            int | None,
            typer.Option(
                metavar="N",
                min=0,
                help="Only the first, the last and N random blocks of 1,000 of each partition.",
            ),
        ] = None,
        seed: Annotated[int, typer.Option(metavar="N", help="Which blocks: the same again.")] = 0,
        online: Annotated[
            bool,
            typer.Option("--online", help="Beside a running bridge, until stopped or different."),
        ] = False,
        every: Annotated[
            float, typer.Option(metavar="SECONDS", min=0.0, help="Pause between online rounds.")
        ] = ROUND_S,
        timeout: Annotated[
            float,
            typer.Option(
                metavar="SECONDS", min=0.0, help="How far behind a bridge may be, online."
            ),
        ] = 60.0,
        report: ReportFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Compare both sides record by record; exit 1 and show the first difference if any.

        With a project, all of its routes; one that cannot be proven is told and left, and the exit
        code is its error's.
        """
        if online:
            if sample is not None:
                raise ConfigurationError("--sample does not go with --online")
            _verify_online(project, every, timeout, report, as_json=as_json)
            return
        _tell(project, run_loop(_prove(project, sample, seed)), report, as_json=as_json)


class Unproven(NamedTuple):
    """A route of a project for which there is no proof."""

    route: Route
    error: BridgeError


def _tell(
    project: Project,
    outcomes: Sequence[Proof | Unproven],
    report: Path | None,
    *,
    as_json: bool,
) -> None:
    """Report and tables; then the first error, or exit 1 if a proof failed."""
    errors = [it.error for it in outcomes if isinstance(it, Unproven)]
    equal = not errors and all(it.equal for it in outcomes if isinstance(it, Proof))
    documents = [
        _unproven_summary(it) if isinstance(it, Unproven) else proof_summary(it) for it in outcomes
    ]
    show = partial(_show, outcomes)
    give_report(project, "verify", documents, report, show, as_json=as_json, equal=equal)
    if errors:
        raise errors[0]
    if not equal:
        raise typer.Exit(CHECK_FAILED)


def _show(outcomes: Sequence[Proof | Unproven]) -> None:
    for it in outcomes:
        if isinstance(it, Proof):
            _print_proof(it)
        else:
            typer.echo(_not_proven(it))


def _not_proven(unproven: Unproven) -> str:
    return f"{unproven.route.topic} → {unproven.route.stream} NOT PROVEN: {unproven.error}"


async def _prove(project: Project, sample: int | None, seed: int) -> list[Proof | Unproven]:
    """One route after the other: each has both sides to itself.

    One that cannot be proven leaves the others of a project, unless a side is out of reach.
    """
    found: list[Proof | Unproven] = []
    for route in await current_routes(project):
        try:
            proof = await prove(
                kafka=project.kafka,
                nats=project.nats,
                route=route,
                kafka_options=dict(project.kafka_options),
                sample_blocks=sample,
                seed=seed,
            )
        except BridgeError as error:
            if not project.is_file:
                raise
            found.append(Unproven(route, error))
            if isinstance(error, Unreachable):
                break
        else:
            found.append(proof)
    return found


# ---- online --------------------------------------------------------------------------------------


def _verify_online(
    project: Project, every_s: float, timeout_s: float, report: Path | None, *, as_json: bool
) -> None:
    """A line for each round; ends at a difference, without a route left, or when told to."""
    last: dict[str, Proof | Unproven] = {}
    code = run_loop(_rounds(project, every_s, timeout_s, last, quiet=as_json))
    if last:
        _tell(project, [last[topic] for topic in sorted(last)], report, as_json=as_json)
    raise typer.Exit(code)


async def _rounds(
    project: Project,
    every_s: float,
    timeout_s: float,
    last: dict[str, Proof | Unproven],
    *,
    quiet: bool,
) -> int:
    """The exit code if nothing differs; ``last`` gets each topic's last round, or why it ended.

    A route that cannot be proven leaves the others of a project.
    """
    stopper = Stopper()

    async def rounds_of(route: Route) -> bool:
        """Whether they ended with a difference."""
        proofs = verify_online(
            kafka=project.kafka,
            nats=project.nats,
            route=route,
            kafka_options=dict(project.kafka_options),
            round_s=every_s,
            timeout_s=timeout_s,
        )
        async with aclosing(proofs) as rounds:
            async for proof in rounds:
                last[route.topic] = proof
                if not quiet:
                    tell(_verdict(proof))
                if not proof.equal:
                    return True
        return False

    async def follow(route: Route) -> bool:
        try:
            return await rounds_of(route)
        except (BridgeError, TimeoutError) as error:
            reason = error if isinstance(error, BridgeError) else BridgeError(str(error))
            if not project.is_file:
                raise reason from error
            last[route.topic] = unproven = Unproven(route, reason)
            if not quiet:
                tell(_not_proven(unproven))
            return False

    routes = await unless_stopped(stopper.stopping, current_routes(project)) or []
    followed = {asyncio.create_task(follow(it)) for it in routes}
    stop = asyncio.create_task(stopper.stopping.wait())
    going_on = set(followed)
    try:
        while going_on and not stop.done():
            done, _ = await asyncio.wait({*going_on, stop}, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result() for task in done):
                break
            going_on -= done
    finally:
        for task in (*followed, stop):
            task.cancel()
        await asyncio.wait({*followed, stop})
    return stopper.code


# ---- the report ----------------------------------------------------------------------------------


def proof_summary(proof: Proof) -> dict[str, Any]:
    """The JSON form of a proof, schema ``millstream.bridge.verify/1``."""
    return {
        "schema": "millstream.bridge.verify/1",
        "topic": proof.topic,
        "stream": proof.stream,
        "mode": proof.mode,
        "equal": proof.equal,
        "records": proof.records,
        **{name: getattr(proof.apart, name) for name in _APART},
        "seconds": round(proof.seconds, 3),
        "difference": None if proof.difference is None else _difference(proof.difference),
        "partitions": {
            str(number): {
                "equal": partition.is_equal,
                "kafka": _side(partition.kafka),
                "nats": _side(partition.nats),
                "expired": partition.expired,
            }
            for number, partition in sorted(proof.partitions.items())
        },
    }


def _unproven_summary(unproven: Unproven) -> dict[str, Any]:
    return {
        "schema": "millstream.bridge.verify/1",
        "topic": unproven.route.topic,
        "stream": unproven.route.stream,
        "equal": False,
        "error": str(unproven.error),
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "count": side.count,
        "first_offset": side.first_offset,
        "last_offset": side.last_offset,
        "digest": side.digest,
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "kafka_partition": difference.kafka_partition,
        "offset": difference.offset,
        "seq": difference.seq,
        "what": difference.what,
        "kafka": None if difference.kafka is None else _record(difference.kafka),
        "nats": None if difference.nats is None else _record(difference.nats),
    }


def _record(record: Record) -> dict[str, Any]:
    """A record with its bytes in base64; null where Kafka has null."""
    return {
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "timestamp_type": str(record.timestamp_type),
        "key": _base64(record.key),
        "value": _base64(record.value),
        "headers": [[name, _base64(value)] for name, value in record.headers],
    }


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _print_proof(proof: Proof) -> None:
    rows = []
    for number, partition in sorted(proof.partitions.items()):
        kafka, nats = partition.kafka, partition.nats
        rows.append(
            (
                str(number),
                str(kafka.count),
                *("-" if it is None else str(it) for it in (kafka.first_offset, kafka.last_offset)),
                str(nats.count),
                *([str(partition.expired)] if proof.apart.expired else []),
                kafka.digest[:16] or "-",
                "yes" if partition.is_equal else "NO",
            )
        )
    expired = ["EXPIRED"] if proof.apart.expired else []
    columns = ("PARTITION", "RECORDS", "FIRST", "LAST", "NATS RECORDS", *expired, "DIGEST", "EQUAL")
    show_table(columns, rows)
    typer.echo(_verdict(proof))
    if (difference := proof.difference) is not None:
        at = "" if difference.seq is None else f" (seq {difference.seq})"
        typer.echo(
            f"first difference: partition {difference.kafka_partition}"
            f" offset {difference.offset}{at}: {difference.what}"
        )
        show_table(("", "KAFKA", "NATS"), side_by_side(difference))


def _verdict(proof: Proof) -> str:
    rate = proof.records / proof.seconds if proof.seconds else 0.0
    apart = [
        f"{count:,} {what}"
        for name, what in _APART.items()
        if (count := getattr(proof.apart, name))
    ]
    what = {"sample": " of a sample", "online": " since the last round"}.get(proof.mode, "")
    return (
        f"{proof.topic} → {proof.stream} {'equal' if proof.equal else 'DIFFERENT'}:"
        f" {proof.records} records{what} in {proof.seconds:.1f} s ({rate:,.0f}/s)"
        + "".join(f"; {it}" for it in apart)
    )


def side_by_side(difference: Difference) -> list[tuple[str, str, str]]:
    """A row for each thing in which the two records differ, or for all if one is not there."""
    one, other = difference.kafka, difference.nats
    if one is not None and other is not None and parts_of(one) == parts_of(other):
        other = None  # the place is wrong, not the record
    rows = []
    for name in ("key", "value", "headers", "timestamp_ms", "timestamp_type"):
        if one is None or other is None:
            left, right = _only(one, name), _only(other, name)
        elif getattr(one, name) != getattr(other, name):
            left, right = _pair(getattr(one, name), getattr(other, name))
        else:
            continue
        rows.append((name, left, right))
    return rows


def _only(record: Record | None, name: str) -> str:
    return "-" if record is None else _text(getattr(record, name))


def _pair(left: object, right: object) -> tuple[str, str]:
    """Two values as text; long bytes from just before where they part."""
    if isinstance(left, bytes) and isinstance(right, bytes):
        shorter = min(len(left), len(right))
        at = next((n for n in range(shorter) if left[n] != right[n]), shorter)
        start = max(0, at - _SHOWN_BYTES // 2)
        return _bytes(left, start), _bytes(right, start)
    return _text(left), _text(right)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return _bytes(value, 0)
    if isinstance(value, tuple):
        return ", ".join(f"{name!r}: {_text(content)}" for name, content in value) or "none"
    return "null" if value is None else str(value)


def _bytes(data: bytes, start: int) -> str:
    shown = repr(data[start : start + _SHOWN_BYTES])[1:]
    before = f"byte {start}: …" if start else ""
    after = "…" if len(data) > start + _SHOWN_BYTES else ""
    return f"{before}{shown}{after} ({len(data)} bytes)"
