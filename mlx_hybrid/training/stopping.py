"""A stop that is asked for with Ctrl-C or SIGTERM, and heeded between steps."""

from collections.abc import Callable
from contextlib import ExitStack
from signal import SIGINT, SIGTERM, signal


class StopRequest(ExitStack):
    """Ctrl-C or SIGTERM asks once for a stop after the current step, before the steps after the first, so that there
    is something to go on from; a second one, or one after the last step, stops at once."""

    def __init__(self, tell: Callable[[str], None], step: str = "this step", on: tuple = (SIGINT, SIGTERM)):
        super().__init__()
        self.asked, self.tell, self.step, self.signals = False, tell, step, on

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> "StopRequest":
        for number in self.signals:
            self.callback(signal, number, signal(number, self.handle))
        return self

    def follow(self, event: object) -> None:
        """Heed where a job is. Raises KeyboardInterrupt when its last step ended with a stop asked for."""
        from mlx_hybrid.training.events import Finished, Started

        if isinstance(event, Started | Finished):
            self.step = "this step" if isinstance(event, Started) else ""
        if self.asked and not self.step:
            raise KeyboardInterrupt

    def handle(self, number: int, frame: object) -> None:
        if self.asked or not self.step:
            raise KeyboardInterrupt
        self.asked = True
        self.tell(f"Stopping after {self.step}; once more to stop at once.")
