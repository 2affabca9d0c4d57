"""The HTTP side of `serve`: what listens, its limits, and the page it shows."""

import base64
import hashlib
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mlx_hybrid.deployment.connection import LOOPBACK
from mlx_hybrid.deployment.handler import Handler
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.generate import Sampling
from mlx_hybrid.serve.engine import Engine

PAGE = Path(__file__).with_name("page.html")
MOST_CONNECTIONS = 64
REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


@dataclass(frozen=True)
class Policy:
    """Who may ask, and how much."""

    host: str = "127.0.0.1"
    api_key: str = ""
    origins: tuple[str, ...] = ()
    """Web origins besides the server's own that may call; none by default."""
    most_bytes: int = 1 << 20
    defaults: Sampling = field(default_factory=Sampling)

    @property
    def local(self) -> bool:
        return self.host in LOOPBACK

    def __repr__(self) -> str:
        return (
            f"Policy(host={self.host!r}, api_key={'set' if self.api_key else 'none'}, origins={self.origins})"
        )


class Server(ThreadingHTTPServer):
    """Listens; each connection has a thread that waits for the engine."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, engine: Engine, policy: Policy, port: int, log: Callable[[str], None] = lambda _: None
    ) -> None:
        self.engine, self.policy, self.log = engine, policy, log
        self.tokenising = threading.Lock()
        self.slots = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.page, self.page_policy = read_page()
        self.started = int(time.time())
        self.address_family = socket.AF_INET6 if ":" in policy.host else socket.AF_INET
        try:
            super().__init__((policy.host, port), Handler)
        except OSError as error:
            raise ConfigError(
                f"{policy.host}:{port} cannot be listened on ({error.strerror}); choose another --port."
            ) from None

    def server_bind(self) -> None:
        """Without the look-up of this machine's full name, which can take seconds and is not used."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.policy.host, self.server_address[1]

    @property
    def url(self) -> str:
        host = f"[{self.policy.host}]" if ":" in self.policy.host else self.policy.host
        return f"http://{host}:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.slots.acquire(blocking=False):
            request.sendall(REFUSAL)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            self.log(f"error: {type(error).__name__}: {error}")


def read_page() -> tuple[bytes, str]:
    """The web page, and the content security policy that lets nothing run but what is in it."""
    text = PAGE.read_text(encoding="utf-8")
    allowed = {}
    for tag in ("script", "style"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL).group(1)
        allowed[tag] = "sha256-" + base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
    return text.encode(), (
        f"default-src 'none'; script-src '{allowed['script']}'; style-src '{allowed['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
