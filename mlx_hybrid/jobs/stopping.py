"""A stop that is asked for with Ctrl-C or SIGTERM, and heeded between steps."""

import signal
from collections.abc import Callable


class StopRequest:
    """Ctrl-C or SIGTERM asks once for a stop after the current step; a second Ctrl-C, or one between the steps and
    all else that a job does, stops at once. `stepping` says that there are steps to end."""

    def __init__(self, tell: Callable[[str], None], *, stepping: bool = True):
        self.asked, self.tell, self.stepping, self.old = False, tell, stepping, {}

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.old[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def follow(self, event: object) -> None:
        """Heed where a job is. Raises KeyboardInterrupt when its last step ended with a stop asked for."""
        from mlx_hybrid.training.events import Finished, Started

        if isinstance(event, Started | Finished):
            self.stepping = isinstance(event, Started)
        if self.asked and not self.stepping:
            raise KeyboardInterrupt

    def handle(self, number: int, frame: object) -> None:
        if self.asked or not self.stepping:
            raise KeyboardInterrupt
        self.asked = True
        self.tell("Stopping after this step; once more to stop at once.")
