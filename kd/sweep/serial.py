"""One task after the other in this process."""

from collections.abc import Iterable, Iterator

from kd.sweep.task import Launcher, Outcome, Task
from kd.sweep.work import perform


class SerialLauncher(Launcher):
    named_devices = True

    def slots(self) -> int:
        return 1

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        for task in tasks:
            yield perform(task)
