"""The edge: sockets, timers, signals (the only folder with asyncio)."""
