"""Protobuf values read by their schema: its text compiled by Google's compiler.

Registries have a schema as the text of a ``.proto`` file, or, where the producer's client knew only
its compiled form (Confluent's for Python), as that in base64. The compiler takes both, and brings
the files of ``google/protobuf``; others that a schema imports must be among its references.
"""

import base64
import binascii
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .schema import Schema

COMPILE_TIMEOUT_S = 60.0
COMPILE_BYTES_MAX = 1 << 30
"""Memory for the compiler: 1 MB of text can be written that lets it take any amount."""
_COMPLAINT_MAX = 1000
"""Of its complaints, characters that are shown."""
_VARINT_BYTES_MAX = 5
_COMPILER = f"""
import contextlib, resource, runpy
with contextlib.suppress(ValueError, OSError):  # less is allowed already, or it is not known here
    resource.setrlimit(resource.RLIMIT_AS, ({COMPILE_BYTES_MAX}, {COMPILE_BYTES_MAX}))
runpy.run_module("grpc_tools.protoc", run_name="__main__", alter_sys=True)
"""


def protobuf_reader(schemas: Sequence[tuple[str, Schema]]) -> Callable[[bytes], Any]:
    """Reads values of the last schema; those before it are under the names it imports them by.

    Takes a fraction of a second, in a process of its own, which a hostile schema cannot let have
    more than its share of time and memory. ImportError; ValueError: the schema cannot be compiled;
    OSError: no process or file can be made. The reader raises what Google's library does, and
    ValueError.
    """
    importlib.import_module("grpc_tools")
    descriptor_pool = importlib.import_module("google.protobuf.descriptor_pool")
    factory = importlib.import_module("google.protobuf.message_factory")
    json_format = importlib.import_module("google.protobuf.json_format")
    pool = descriptor_pool.DescriptorPool()
    main = f"schema-{schemas[-1][1].id}.proto"
    for file in _compiled([*schemas[:-1], (main, schemas[-1][1])]):
        pool.Add(file)
    kinds = list(pool.FindFileByName(main).message_types_by_name.values())

    def read(data: bytes) -> Any:
        places, rest = _places(data)
        kind = kinds[places[0]]
        for place in places[1:]:
            kind = kind.nested_types[place]
        message = factory.GetMessageClass(kind).FromString(rest)
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, descriptor_pool=pool
        )

    return read


def _compiled(files: Sequence[tuple[str, Schema]]) -> list[Any]:
    """All files the last one needs, those that others need first, then itself."""
    descriptor_pb2 = importlib.import_module("google.protobuf.descriptor_pb2")
    known = descriptor_pb2.FileDescriptorSet()
    with tempfile.TemporaryDirectory(prefix="millstream-") as folder:
        sources, given, made = (Path(folder, name) for name in ("sources", "given", "made"))
        sources.mkdir()
        for name, schema in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"it imports {name}, a file from elsewhere")
            try:
                compiled = base64.b64decode(schema.text, validate=True)
            except (binascii.Error, ValueError):  # what no text of a schema could be
                (sources / path).parent.mkdir(parents=True, exist_ok=True)
                (sources / path).write_text(schema.text, encoding="utf-8")
            else:
                known.file.add().MergeFromString(compiled)
                known.file[-1].name = name
        given.write_bytes(known.SerializeToString())
        try:
            done = subprocess.run(  # noqa: S603 - no word of it is the registry's
                [
                    *(sys.executable, "-P", "-c", _COMPILER, "--proto_path=sources"),
                    *(f"--descriptor_set_in={given}", f"--descriptor_set_out={made}"),
                    *("--include_imports", files[-1][0]),
                ],
                cwd=folder,  # not where files are that the registry named: PYTHONPATH may mean "."
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMPILE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"it takes more than {COMPILE_TIMEOUT_S:g} s to compile") from error
        if done.returncode < 0:
            raise ValueError(f"signal {-done.returncode} ended its compiler")
        if done.returncode:
            places = tuple(f"{name}:" for name, _ in files)
            lines = [line.removeprefix("sources/") for line in done.stderr.splitlines()]
            said = [line for line in lines if line.startswith(places)]
            raise ValueError(" ".join(said or done.stderr.split())[:_COMPLAINT_MAX])
        return list(descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file)


def _places(data: bytes) -> tuple[list[int], bytes]:
    """Where in its file the message's type is, outermost first; then the message."""
    count, at = _varint(data, 0)
    if count == 0:
        return [0], data[at:]
    places = []
    for _ in range(count):
        place, at = _varint(data, at)
        places.append(place)
    return places, data[at:]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, of which those below zero mean nothing here, and where it ends."""
    number = 0
    for n in range(_VARINT_BYTES_MAX):
        byte = data[at + n]
        number |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            if number & 1:
                break
            return number >> 1, at + n + 1
    raise ValueError("a number in the value's head is none that counts")
