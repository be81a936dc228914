"""The Python client: an asyncio core, and a blocking face over it.

`peerd.connect` and `peerd.aio.connect` are the doors; docs/client.md shows the use.
"""
