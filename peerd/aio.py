"""The asyncio door: `async with peerd.aio.connect("host:port", credentials=…) as client`."""

from peerd.client.asynchronous import Client, ClientStatistics, connect
from peerd.client.producer import Producer
from peerd.client.reading import RecordStream

__all__ = ["Client", "ClientStatistics", "Producer", "RecordStream", "connect"]
