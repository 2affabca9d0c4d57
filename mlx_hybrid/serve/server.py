"""What listens: uvicorn, in a thread beside the one that generates."""

import socket
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.serve.app import make_app
from mlx_hybrid.serve.engine import Engine
from mlx_hybrid.serve.guard import SILENCE_SECONDS, Policy

MOST_CONNECTIONS = 64
GRACE_SECONDS = 5  # for answers that are being told that the server goes down


class Connection(H11Protocol):
    """Lets a client go that sends no whole request head: uvicorn itself waits for ever."""

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)
        self.wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None):
            self.wait()

    def wait(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(SILENCE_SECONDS, self.transport.close)


class Server:
    """An engine's answers on a port. Raises ConfigError for an address that cannot be listened on; port 0 takes a free
    one."""

    def __init__(
        self, engine: Engine, policy: Policy, port: int, log: Callable[[str], None] = lambda _: None
    ) -> None:
        self.engine, self.policy = engine, policy
        family = socket.AF_INET6 if ":" in policy.host else socket.AF_INET
        try:
            self.socket = socket.create_server((policy.host, port), family=family, backlog=128)
        except OSError as error:
            told = f"{policy.host}:{port} cannot be listened on ({error.strerror}); choose another --port."
            raise ConfigError(told) from None
        self.address = self.socket.getsockname()[:2]
        host = f"[{policy.host}]" if family == socket.AF_INET6 else policy.host
        self.url = f"http://{host}:{self.address[1]}"
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(
                make_app(engine, policy, log),
                http=Connection,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=SILENCE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    def run(self) -> None:
        """Listen until `close`."""
        self.uvicorn.run(sockets=[self.socket])

    def close(self) -> None:
        self.uvicorn.should_exit = True
