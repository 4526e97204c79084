"""`hydra/sweeper=optuna`: a search in place of a grid, by Optuna itself.

The published Hydra plugin for Optuna needs Optuna 2, so this is a thin search of our own: the space comes from the
command line (`kd.sweep.space`), Optuna keeps the trials (`kd.sweep.study`), and each trial becomes jobs of the sweep,
one for every seed. A trial's value is the mean accuracy of its students on validation; the test set chooses nothing.
"""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import mean
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from kd import folder as folders
from kd.check import choice, integer
from kd.cli import message
from kd.errors import ConfigError
from kd.sweep.book import SKIPPED, Book
from kd.sweep.networks import Plans
from kd.sweep.plan import Arguments, Composer, Job
from kd.sweep.record import in_words
from kd.sweep.space import Dimension, interval, listed, probes
from kd.sweep.study import SAMPLERS, Study, Trial, sqlite
from kd.sweep.task import DONE

if TYPE_CHECKING:
    from kd.sweep.drive import Work
    from kd.sweep.summary import Summary

NO_VALIDATION = (
    "A search is led by the accuracy on validation, and there are no validation images. Set data.val to a number of "
    "images, e.g. data.val=5000."
)
NO_JOIN = (
    "join=true: a search cannot be joined, because its next trial follows from outcomes that only its own process has. "
    "Give its launcher more slots instead."
)
NO_FORCE = (
    "force=true: the trials of a study have their values already. For a search that begins anew give another folder: "
    "hydra.sweep.dir=FOLDER."
)
NO_SPACE = (
    "There is nothing to search. Say what to choose from, as 'method.temperature=interval(1,20)' or "
    "method.alpha=0.1,0.5; seeds alone are a sweep without hydra/sweeper=optuna."
)


@dataclass(frozen=True)
class Settings:
    """What conf/hydra/sweeper/optuna.yaml sets."""

    n_trials: Any
    sampler: Any = "tpe"
    sampler_seed: Any = 0
    study: Any = None
    storage: Any = None
    params: dict[str, Any] = field(default_factory=dict)  # read with the command line, as part of it

    def mistakes(self) -> list[str]:
        found: list[str] = []
        with _noted(found):
            integer("hydra.sweeper.n_trials", self.n_trials, low=1)
        with _noted(found):
            choice("hydra.sweeper.sampler", self.sampler, SAMPLERS)
        with _noted(found):
            integer("hydra.sweeper.sampler_seed", self.sampler_seed, high=2**32 - 1)
        for name in ("study", "storage"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                found.append(f"Expected `hydra.sweeper.{name}` to be text or null, but got {value!r}.")
        if find_spec("optuna") is None:
            found.append("hydra/sweeper=optuna needs Optuna, which is not installed: pip install optuna.")
        return found


class Search:
    """The trials of a study as jobs of a sweep. Raises one `ConfigError` for every mistake in what was asked for.

    The sweep calls `begin`, `run` and `end`, in this order, and `close` in any case.
    """

    def __init__(self, arguments: Arguments, settings: Settings) -> None:
        self.arguments, self.settings, self.composer = arguments, settings, Composer(arguments)
        seeds = [axis for axis in arguments.axes if axis.key == "seed"]
        self.seeds = tuple(seed for axis in seeds for seed in axis.overrides)
        self.dimensions: list[Dimension] = []
        self.probes: list[Job] = []
        mistakes = settings.mistakes()
        for axis in arguments.axes:
            with _noted(mistakes):
                if axis not in seeds:
                    self.dimensions.append(listed(axis))
        for override in arguments.continuous:
            with _noted(mistakes):
                self.dimensions.append(interval(override))
        if not (arguments.continuous or len(arguments.axes) > len(seeds)):
            mistakes.append(NO_SPACE)
        with _noted(mistakes):
            self.probes = self.composer.jobs(probes([*self.dimensions, *map(listed, seeds)]))
        configs = [job.config for job in self.probes]
        mistakes += [NO_VALIDATION] * any(config.data.get("val") == 0 for config in configs)
        mistakes += [NO_JOIN] * any(config.join for config in configs)
        mistakes += [NO_FORCE] * any(config.force for config in configs)
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        self.cut_off: list[Trial] = []
        self.jobs: dict[str, Job] = {}  # by their configuration's hash
        self.of_trial: dict[int, list[Job] | str] = {}  # or why its settings are refused
        self.study: Study | None = None

    def begin(self) -> list[Job]:
        """Open the study and return the jobs of its trials so far. Raises `ConfigError` if it is of something else."""
        folder, settings = self.arguments.folder, self.settings
        self.study = Study(
            settings.study or f"{folder.parent.name}/{folder.name}",
            settings.storage or sqlite(folder),
            settings.sampler,
            settings.sampler_seed,
            {dimension.key: dimension.distribution() for dimension in self.dimensions},
            settings.n_trials,
        )
        about = {dimension.key: dimension.words for dimension in self.dimensions}
        about |= {"seeds of a trial": ", ".join(_values(self.seeds)) or "that of the configuration"}
        self.study.agree(about | {"configuration of what is not searched": self.probes[0].digest})
        self.cut_off = self.study.resume()
        return [job for trial in [*self.study.ended(), *self.cut_off] for job in self._jobs(trial)]

    def rehearsed(self, book: Book) -> list[Job]:
        """Jobs to try on one batch before anything runs; none if nothing is left to run."""
        assert self.study is not None
        book.expected = self._expected(book)
        left = self.cut_off or self.study.remaining() or book.pending(self.jobs.values())
        return self.probes if left else []

    def run(self, work: "Work", plans: Plans) -> None:
        """Do the trials that were cut off, then ask for as many as keep the slots busy, until there are enough."""
        study, book = self.study, work.book
        assert study is not None
        if any(plans.data(job.config).counts()["val"] == 0 for job in self.probes):
            raise ConfigError(NO_VALIDATION)
        work.summary.note(self._described())
        work.do(plans, book.pending(self.jobs.values()))
        for trial in self.cut_off:
            self._tell(trial, work)
        at_once = -(-work.launcher.slots() // max(1, len(self.seeds)))
        while remaining := study.remaining():
            batch = [study.ask() for _ in range(min(at_once, remaining))]
            jobs = {job.name: job for trial in batch for job in self._jobs(trial)}
            book.add(jobs.values())
            book.expected = self._expected(book)
            work.do(plans, book.pending(jobs.values()))
            for trial in batch:
                self._tell(trial, work)
            if jobs and all(book.records[name].state == SKIPPED for name in jobs):
                work.summary.note("No network that these trials need could be trained: the search stops here.")
                return

    def end(self, summary: "Summary") -> None:
        """Print the best parameters and the command that runs them."""
        assert self.study is not None
        ended, best = self.study.ended(), self.study.best()
        if best is None or best.value is None:
            summary.note("No trial of the search has a value.")
            return
        chosen, seeds = self._chosen(best), _values(self.seeds)
        different = len({self._chosen(trial) for trial in ended})
        pooled = f", the mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
        summary.note(
            f"best on validation: trial {best.number} with {best.value:.2%}{pooled}: {in_words(chosen)} "
            f"({len(ended)} trials, {different} different)"
        )
        many = ["-m"] if len(seeds) > 1 else []
        seed = [f"seed={','.join(seeds)}"] if seeds else []
        summary.note(f"  {shlex.join(['python', '-m', 'kd.run', *many, *self.arguments.fixed, *chosen, *seed])}")

    def close(self) -> None:
        if self.study is not None:
            self.study.close()

    def _described(self) -> str:
        assert self.study is not None
        own = "study.db in that folder" if self.settings.storage is None else self.study.storage
        return (
            f"search: {self.settings.n_trials} trials by {self.settings.sampler}; study {self.study.name} in {own} has "
            f"{len(self.study.ended())} with a value, {len(self.cut_off)} cut off"
        )

    def _chosen(self, trial: Trial) -> tuple[str, ...]:
        return tuple(dimension.override(trial.params[dimension.key]) for dimension in self.dimensions)

    def _jobs(self, trial: Trial) -> list[Job]:
        """One job for every seed, the same one for the same settings in another trial; none if they are refused."""
        combinations = [(*self._chosen(trial), seed) for seed in self.seeds] or [self._chosen(trial)]
        try:
            made = [self.composer.job(combination) for combination in combinations]
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            self.of_trial[trial.number] = message(error, [*self.arguments.fixed, *combinations[0]])
            return []
        jobs = [self.jobs.setdefault(job.digest, job) for job in made]
        self.of_trial[trial.number] = jobs
        return jobs

    def _tell(self, trial: Trial, work: "Work") -> None:
        """Tell the study what came of a trial: the mean over its seeds, or that it failed."""
        assert self.study is not None
        jobs, chosen = self.of_trial[trial.number], self._chosen(trial)
        if isinstance(jobs, str):
            work.book.refused(folders.short(chosen), chosen, jobs)
            work.summary.note(f"{in_words(chosen)}  skipped  {jobs}")
            self.study.tell(trial, None)
            return
        records = [work.book.records[job.name] for job in jobs]
        values = [record.result["val_accuracy"] for record in records if record.state == DONE and record.result]
        known = [value for value in values if value is not None]
        self.study.tell(trial, mean(known) if len(known) == len(jobs) else None)

    def _expected(self, book: Book) -> int:
        assert self.study is not None
        return len(book.records) + self.study.remaining() * max(1, len(self.seeds))


def read_search(arguments: Arguments) -> Search | None:
    """The search that hydra/sweeper asks for, checked; None for a grid. Other sweepers `kd.hydra_guard` has refused."""
    node = arguments.hydra.sweeper
    if str(node.get("_target_")).endswith(".BasicSweeper"):
        return None
    return Search(arguments, instantiate(node))


def _values(overrides: Sequence[str]) -> list[str]:
    return [override.partition("=")[2] for override in overrides]


@contextmanager
def _noted(mistakes: list[str]) -> Iterator[None]:
    """Collect the mistake that is found, so that the next one is found too."""
    try:
        yield
    except ConfigError as error:
        mistakes.append(str(error))
