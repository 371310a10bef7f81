"""``millstream bridge schemas`` as a user runs it."""

import json
import signal

import pytest

from tests.bridge.moves import until
from tests.bridge.test_cli import run, started
from tests.bridge.test_schemas import ADDRESS
from tests.helpers.registry import stand_in_registry
from tests.helpers.servers import Server


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_schemas_are_copied_and_followed(
    server: Server, number: signal.Signals, code: int
) -> None:
    with stand_in_registry() as registry:
        registry.register("a", ADDRESS)
        options = ["--registry", registry.url, "--nats", server.url]

        once = run("schemas", *options, "--json")
        assert once.returncode == 0, once.stderr
        report = json.loads(once.stdout)
        assert report["schema"] == "millstream.bridge.schemas/1"
        assert (report["subjects"], report["written"]) == (1, 1)
        assert "0 new in bucket" in run("schemas", *options).stdout
        registry.register("deleted", ADDRESS)
        registry.delete("deleted")
        registry.shows_deleted = False
        assert "; 1 deleted and not shown" in run("schemas", *options).stdout

        with started("schemas", *options, "--follow", "--every", "0.1") as process:
            asked = len(registry.asked)
            await until(lambda: len(registry.asked) > asked + 4)
            registry.register("b", ADDRESS)
            assert process.stdout is not None
            await until(lambda: sum("/config/b" in line for line in registry.asked) > 1)
            process.send_signal(number)
            out, _ = process.communicate(timeout=30)
        assert process.returncode == code
        assert "; 1 new in bucket" in out
        assert "; 0 new in bucket" not in out  # a pass that found nothing says nothing

    away = run("schemas", "--registry", registry.url, "--nats", server.url)
    assert away.returncode == 3
    where = f"schema registry at {registry.url} is unreachable"
    assert away.stderr == f"millstream bridge: {where}: Connection refused\n"
    assert run("schemas", "--registry", "here").returncode == 2
