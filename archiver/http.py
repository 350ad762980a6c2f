"""The HTTP port: /metrics for Prometheus, /healthz (the process lives), /readyz (it captures and keeps up)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from archiver.config import HttpSection
from archiver.errors import ConfigError
from archiver.metrics import Metrics


@asynccontextmanager
async def serve(settings: HttpSection, metrics: Metrics, not_ready: Callable[[], str | None]) -> AsyncIterator[None]:
    """Listen while the context lasts. `not_ready` says why the daemon is not ready, None if it is."""
    app = web.Application()

    async def render(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        reason = not_ready()
        return web.json_response({"ready": reason is None, "reason": reason}, status=503 if reason else 200)

    app.add_routes([web.get("/metrics", render), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        host, port = settings.address
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as exc:
            hint = "Free the port, or change [http] listen."
            raise ConfigError(f"cannot listen: {exc.strerror}", where=settings.listen, hint=hint) from None
        yield
    finally:
        await runner.cleanup()
