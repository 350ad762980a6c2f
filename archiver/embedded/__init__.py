"""PostgreSQL and S3 servers of our own, for the demo, drills and tests: real ones, disposable, on loopback only.

In: settings. Out: a running server in a temporary folder, which `close` (or leaving the context, even by
cancellation) stops and removes. Methods block; from async code use `async with`, or asyncio.to_thread. Nothing
outlives this process, and nothing here is for data that matters.
"""

from archiver.embedded.postgres import PostgresServer
from archiver.embedded.s3 import S3Server, Tls

__all__ = ["PostgresServer", "S3Server", "Tls"]
