"""A sweep without `hydra/sweeper`: every combination of the values."""

from typing import TYPE_CHECKING

from kd.sweep.book import Book
from kd.sweep.networks import Plans
from kd.sweep.plan import Arguments, Composer, Job, grid
from kd.sweep.summary import Summary

if TYPE_CHECKING:
    from kd.sweep.drive import Work


class Grid:
    """Jobs that are all known from the beginning, in the order of the values. A `Search` has the same methods."""

    def __init__(self, arguments: Arguments) -> None:
        self.jobs = Composer(arguments).jobs(grid(arguments))

    def begin(self) -> list[Job]:
        return self.jobs

    def rehearsed(self, book: Book) -> list[Job]:
        return book.pending(self.jobs)

    def run(self, work: "Work", plans: Plans) -> None:
        work.do(plans, work.book.pending(self.jobs))

    def end(self, summary: Summary) -> None:
        pass

    def close(self) -> None:
        pass
