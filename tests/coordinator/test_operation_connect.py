"""An operator's connection by its settings: TLS, an nkey, credentials, a JetStream domain."""

import asyncio
from pathlib import Path

import nkeys  # type: ignore[import-untyped]
import pytest

from millstream_coordinator.errors import GroupError
from millstream_coordinator.jetstream.api import api_prefix
from millstream_coordinator.operation import admin
from millstream_coordinator.operation.connect import connected
from millstream_coordinator.operation.overview import list_groups, read_overview
from millstream_coordinator.operation.service import NewGroup, Service
from millstream_coordinator.operation.settings import CoordinatorSettings
from millstream_coordinator.operation.target import Target
from tests.coordinator.nats_jwt import Key, write_operator
from tests.coordinator.test_connections import TLS, configured

pytestmark = pytest.mark.real_server


async def looks(settings: CoordinatorSettings) -> bool:
    """Whether an operator with these settings sees that there is no group yet."""
    async with connected(settings) as connection:
        return await list_groups(connection, prefix=settings.api_prefix) == []


async def test_certificates_come_from_the_settings(tmp_path: Path) -> None:
    config = (
        f'tls {{ cert_file: "{TLS}/cert.pem", key_file: "{TLS}/key.pem",'
        f' ca_file: "{TLS}/cert.pem", verify: true }}'
    )
    async with configured(tmp_path, config) as server:
        settings = CoordinatorSettings(
            nats_url=server.url,
            tls_ca=TLS / "cert.pem",
            tls_cert=TLS / "cert.pem",
            tls_key=TLS / "key.pem",
        )
        assert await looks(settings)


async def test_an_nkey_comes_from_a_file(tmp_path: Path) -> None:
    user = Key(nkeys.PREFIX_BYTE_USER)
    seed = tmp_path / "user.nk"
    seed.write_bytes(user.seed)
    async with configured(
        tmp_path, f"authorization {{ users: [{{nkey: {user.public}}}] }}"
    ) as server:
        assert await looks(CoordinatorSettings(nats_url=server.url, nkey=seed))


async def test_credentials_come_from_a_file(tmp_path: Path) -> None:
    config, creds = write_operator(tmp_path)
    async with configured(tmp_path, config) as server:
        assert await looks(CoordinatorSettings(nats_url=server.url, creds=creds))


async def test_a_certificate_that_is_none_is_said(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")

    with pytest.raises(GroupError, match=r"certificate .*ca\.pem cannot be used"):
        async with connected(CoordinatorSettings(tls_ca=file)):
            pass


async def test_a_group_in_a_domain_is_led_looked_at_and_changed_there(tmp_path: Path) -> None:
    async with configured(tmp_path, "", jetstream="domain: hub") as server:
        settings = CoordinatorSettings(nats_url=server.url, domain="hub", groups=("g",))
        stopping, ready = asyncio.Event(), asyncio.Event()
        async with connected(settings) as connection:
            service = Service(connection, settings, new=NewGroup(partitions=2))
            running = asyncio.create_task(service.run(stopping, on_ready=ready.set))
            async with asyncio.timeout(60):
                await ready.wait()
            target = Target(connection, "g", prefix=api_prefix("hub"))
            await admin.pause(target, partitions=[1])
            overview = await read_overview(target)
            stopping.set()
            await running

    assert [row.is_paused for row in overview.partitions] == [False, True]
    assert len(overview.members) == 1
