"""The dashboard in a browser: textual-serve, closed to everybody but the holder of the printed address.

Whoever reaches the dashboard can start a training. A secret token is therefore part of the address. Requests
under another host name (DNS rebinding) or from the page of another site (its Origin) are refused.
"""

import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web
from textual_serve.server import Server

from tfx_cli.output import narrate

_HOST = "127.0.0.1"
_HEADERS = {
    "Content-Security-Policy": (  # the page needs nothing of the network
        "default-src 'self' 'unsafe-inline' data:; connect-src 'self' ws://{host}; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class DashboardServer(Server):
    """Serves a command to browsers on this machine; every tab has a process of its own."""

    def __init__(self, command: str, port: int) -> None:
        super().__init__(command, host=_HOST, port=port, title="tfx dashboard")
        self._token = secrets.token_urlsafe(24)
        self._address = f"{_HOST}:{port}"
        self._cookie = f"tfx_{port}"  # cookies of all ports of a host are sent to each of them

    def serve(self, debug: bool = False) -> None:
        """Serve until Ctrl-C or SIGTERM. Raises OSError if the port cannot be used."""
        message = f"open http://{self._address}/?token={self._token} in a browser; Ctrl-C ends it"
        web.run_app(
            self._make_app(),
            host=self.host,
            port=self.port,
            access_log=None,
            print=lambda *_: narrate(message),
        )

    async def on_startup(self, app: web.Application) -> None:
        """Print no logo."""

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._guard)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer the holder of the token only, whose browser keeps it as a cookie."""
        origin = request.headers.get("Origin", f"http://{self._address}")
        if request.host != self._address or origin != f"http://{self._address}":
            raise web.HTTPForbidden(text=f"Open http://{self._address}, with the token, instead.")
        if self._is_token(request.query.get("token", "")):
            # The token leaves the address bar and the history.
            welcome = web.HTTPSeeOther(request.path)
            welcome.set_cookie(self._cookie, self._token, httponly=True, samesite="Strict")
            raise welcome
        if not self._is_token(request.cookies.get(self._cookie, "")):
            raise web.HTTPForbidden(text="Open the address that 'tfx dashboard --web' printed.")
        response = await handler(request)
        if not response.prepared:
            policy = {name: text.format(host=self._address) for name, text in _HEADERS.items()}
            response.headers.update(policy)
        return response

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())
