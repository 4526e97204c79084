"""What a person sees of a sweep: a line per job and the state of the whole, and a table at the end."""

from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as Bar
from rich.table import Table
from rich.text import Text

from kd.files import LOG
from kd.sweep.book import SKIPPED, Book, Record
from kd.sweep.plan import Job
from kd.sweep.record import in_words
from kd.sweep.task import DONE, FAILED, Outcome

ROWS = 10  # configurations in the table


class Summary:
    """Prints as a sweep goes on. In a terminal there is a bar besides; elsewhere each line says how far it is."""

    def __init__(self, console: Console, book: Book, slots: int = 0) -> None:
        self.console, self.book, self.slots = console, book, slots
        self.ended, self.spent_s = 0, 0.0  # jobs done now
        self.bar: Progress | None = None

    def start(self, folder: Path) -> None:
        counts = self.book.counts
        before = f", {counts[DONE]} of them finished before" if counts[DONE] else ""
        self._say(f"{shown(folder)}")
        at_once = f", {self.slots} at once" if self.slots else ""
        self._say(f"{self.book.total} jobs{before}{at_once}; the state of each is in sweep.json there")
        if self.console.is_terminal and self.book.total > self._finished():
            self.bar = Progress(BarColumn(), TextColumn("{task.completed}/{task.total}"), State(self),
                                console=self.console, transient=True)  # fmt: skip
            self.task = self.bar.add_task("jobs", total=self.book.total, completed=counts[DONE])
            self.bar.start()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def note(self, text: str) -> None:
        self._say(text)

    def network(self, outcome: Outcome) -> None:
        said = outcome.error or outcome.said
        self._say(f"{outcome.task.name}  {outcome.state} in {outcome.seconds:,.1f} s  {said}".rstrip())

    def job(self, job: Job, outcome: Outcome) -> None:
        """Tell how a job ended, and how far the sweep is."""
        record = self.book.records[job.name]
        if outcome.state == DONE:
            self.ended, self.spent_s = self.ended + 1, self.spent_s + outcome.seconds
        said = _accuracy(record) if outcome.state == DONE else f"status {outcome.status}: {outcome.error}"
        far = "" if self.bar else f"  [{self.state()}]"
        self._say(f"{job.words}  {outcome.state} in {outcome.seconds:,.1f} s  {said}{far}")
        if self.bar is not None:
            self.bar.update(self.task, completed=self._finished(), total=self.book.total)

    def state(self) -> str:
        """`3 of 30 done, 2 running, 1 failed, best on validation 98.20% (T=4 ...), 12 min left`."""
        counts = self.book.counts
        parts = [f"{counts[DONE]} of {self.book.total} done", f"{len(self.book.running())} running"]
        parts += [f"{counts[state]} {state}" for state in (FAILED, SKIPPED) if counts[state]]
        if (best := self.book.best) and best.result:
            accuracy = _percent(best.result["val_accuracy"])
            parts.append(f"best on validation {accuracy} ({in_words(best.overrides)})")
        if left := self._left_s():
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)

    def end(self, folder: Path) -> None:
        """Print the best configurations, every failure, and what can be done next."""
        counts = self.book.counts
        if counts[DONE]:
            self.console.print(self._table())
        failures = [r for r in self.book.records.values() if r.state in (FAILED, SKIPPED)]
        for record in failures:
            error = record.error or {"status": 0, "message": ""}
            status = f" with status {error['status']}" if record.state == FAILED else ""
            self._say(f"{record.state}{status}: {in_words(record.overrides)}: {error['message']}")
            if record.state == FAILED:
                self._say(f"  {shown(folder / record.name / LOG)}")
        if failures:
            self._say(f"{len(failures)} of {self.book.total} jobs have no result; the same command tries them again.")
        if counts[DONE]:
            self._say(f"one page that compares them: python -m kd.report {shown(folder)}")

    def _table(self) -> Table:
        """The configurations with their seeds pooled, the best on validation first."""
        pools: dict[str, list[Record]] = {}
        for record in self.book.records.values():
            if record.state == DONE:
                pools.setdefault(in_words(o for o in record.overrides if not o.startswith("seed=")), []).append(record)
        ranked = sorted(pools.items(), key=lambda pool: -(_mean(pool[1], "val_accuracy") or 0))
        title = f"the best {ROWS} of {len(ranked)} configurations" if len(ranked) > ROWS else "configurations"
        table = Table(title=f"{title}, by validation", title_justify="left")
        for name in ("", "n", "validation", "test", "baseline's test"):
            table.add_column(name, justify="left" if not name else "right")
        for words, records in ranked[:ROWS]:
            keys = ("val_accuracy", "test_accuracy", "baseline_test_accuracy")
            table.add_row(words, str(len(records)), *(_percent(_mean(records, key)) for key in keys))
        return table

    def _finished(self) -> int:
        return sum(self.book.counts[state] for state in (DONE, FAILED, SKIPPED))

    def _left_s(self) -> float | None:
        left = self.book.total - self._finished()
        return self.spent_s / self.ended * left / max(1, min(self.slots, left)) if self.ended and left else None

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        self.console.file.flush()


class State(ProgressColumn):
    """The state of the sweep beside its bar."""

    max_refresh = 1.0

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary

    def render(self, task: Bar) -> Text:
        return Text(self.summary.state())


def shown(path: Path) -> Path:
    """A path as a person in this folder would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _accuracy(record: Record) -> str:
    assert record.result is not None
    val, test = record.result["val_accuracy"], record.result["test_accuracy"]
    return f"validation {_percent(val)}, test {_percent(test)}"


def _mean(records: list[Record], key: str) -> float | None:
    values = [record.result[key] for record in records if record.result and record.result[key] is not None]
    return mean(values) if values else None  # type: ignore[type-var]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _duration(seconds: float) -> str:
    for unit, length, most in (("s", 1, 100), ("min", 60, 100)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
