"""Reading the sink's final content."""

import pytest
from nats.aio.client import Client
from nats.js.kv import KeyValue

from millstream.demo.sink import read_sink
from millstream.demo.tracks import Track, encode


@pytest.mark.parametrize("marker_at", [0, 1])
async def test_an_early_end_marker_of_the_client_hides_no_entry(
    client: Client, monkeypatch: pytest.MonkeyPatch, marker_at: int
) -> None:
    bucket = f"early{marker_at}"
    store = await client.jetstream().create_key_value(bucket=bucket)
    for number in range(5):
        await store.put(f"N{number}", encode(Track(legs=number)))
    await store.put("=none.3.9", encode(Track(legs=1)))
    watchall = KeyValue.watchall

    async def with_early_marker(self: KeyValue) -> KeyValue.KeyWatcher:
        watcher = await watchall(self)
        # As the client does when everything was sent before it looked at the first entry.
        waiting = watcher._updates._queue  # type: ignore[attr-defined]
        waiting.insert(min(marker_at, len(waiting)), None)
        if len(waiting) == 1:
            watcher._updates._wakeup_next(watcher._updates._getters)  # type: ignore[attr-defined]
        return watcher

    monkeypatch.setattr(KeyValue, "watchall", with_early_marker)

    content = await read_sink(client, bucket)

    assert {key: track.legs for key, track in content.aircraft.items()} == {
        f"N{number}": number for number in range(5)
    }
    assert content.effects == 11


async def test_an_empty_bucket_is_empty_at_once(client: Client) -> None:
    await client.jetstream().create_key_value(bucket="empty")

    assert (await read_sink(client, "empty")).effects == 0
