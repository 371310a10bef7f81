"""The edge: the only place with sockets, clocks, chance, signals and asyncio."""
