"""The trials of a search, kept by Optuna: asked, told, counted, and carried on after an interruption."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

FILE = "study.db"
SAMPLERS = ("tpe", "random")
CONTINUED = "No finished job is lost: the same command continues the search once the storage can be used."
RETRIES = "retries"  # the attribute that has the number of the failed trial which is tried again


@dataclass(frozen=True)
class Trial:
    """One choice of a value for every key that is searched. `value` is the mean validation accuracy, when known."""

    number: int
    params: Mapping[str, Any]
    value: float | None = None


class Study:
    """A study of one sweep's folder. Its trials survive the process: the same study again goes on where it was.

    A trial that had been asked and not told is carried on; one that failed is enqueued to be tried again, as a new
    trial that takes its place in the count.
    """

    def __init__(
        self, name: str, storage: str, sampler: str, seed: int, space: "Mapping[str, BaseDistribution]", total: int
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.storage, self.sampler, self.seed = name, storage, sampler, seed
        self.space, self.total = dict(space), total
        with _storage_errors(
            storage, "Leave hydra.sweeper.storage away, or give an address as sqlite:////tmp/study.db."
        ):
            self._storage = optuna.storages.RDBStorage(storage)
            self._study: OptunaStudy = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )

    def agree(self, about: Mapping[str, str]) -> None:
        """Note what the study is of, or raise `ConfigError` if it was of something else, with both."""
        with _storage_errors(self.storage):
            before = self._study.user_attrs.get("about")
            if before is None:
                self._study.set_user_attr("about", dict(about))
                return
        if before == dict(about):
            return
        keys = [key for key in {**before, **about} if before.get(key) != about.get(key)]
        lines = [f"  {key}: {before.get(key, 'none')} in the study, {about.get(key, 'none')} now" for key in keys]
        raise ConfigError(
            f"The study {self.name!r} is of another search:\n" + "\n".join(lines) + "\nSearch as before, or begin a "
            "study of its own with hydra.sweeper.study=NAME."
        )

    def resume(self) -> list[Trial]:
        """Return the trials that were cut off, and enqueue those that failed."""
        from optuna.trial import TrialState

        with _storage_errors(self.storage):
            for trial in self._all():
                if trial.state == TrialState.RUNNING and not self._is_whole(trial):  # cut off while it was asked
                    self._study.tell(trial.number, state=TrialState.FAIL)
            for trial in self._standing():
                if trial.state == TrialState.FAIL:
                    self._study.enqueue_trial(trial.params, user_attrs={RETRIES: trial.number})
            return [_plain(trial) for trial in self._standing() if trial.state == TrialState.RUNNING]

    def ended(self) -> list[Trial]:
        """The trials that have a value."""
        from optuna.trial import TrialState

        return [_plain(trial) for trial in self._standing() if trial.state == TrialState.COMPLETE]

    def remaining(self) -> int:
        """How many trials are to be asked yet."""
        from optuna.trial import TrialState

        standing = self._standing()
        waiting = sum(trial.state == TrialState.WAITING for trial in standing)
        return waiting + max(0, self.total - len(standing))

    def ask(self) -> Trial:
        """Choose the next trial, by the outcomes so far and those that are running."""
        with _storage_errors(self.storage):
            # as many trials, as many draws: an interrupted search must not draw its first numbers again
            self._study.sampler = _sampler(self.sampler, self.seed, len(self._all()))
            trial = self._study.ask(self.space)
            return Trial(trial.number, trial.params)

    def tell(self, trial: Trial, value: float | None) -> None:
        """Note the value of a trial, or with None that it failed."""
        from optuna.trial import TrialState

        with _storage_errors(self.storage):
            self._study.tell(trial.number, value, state=TrialState.FAIL if value is None else None)

    def best(self) -> Trial | None:
        """The trial with the highest value; of equal ones the first."""
        return max(self.ended(), key=lambda trial: (trial.value or 0.0, -trial.number), default=None)

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _all(self) -> "list[FrozenTrial]":
        with _storage_errors(self.storage):
            return self._study.get_trials(deepcopy=False)

    def _standing(self) -> "list[FrozenTrial]":
        """The trials that count: not those cut off before they had parameters, nor those that were tried again."""
        from optuna.trial import TrialState

        whole = [trial for trial in self._all() if trial.state == TrialState.WAITING or self._is_whole(trial)]
        retried = {trial.user_attrs.get(RETRIES) for trial in whole}
        return [trial for trial in whole if trial.number not in retried]

    def _is_whole(self, trial: "FrozenTrial") -> bool:
        return set(trial.params) == set(self.space)


def sqlite(folder: Path) -> str:
    """The address of a sweep's own study."""
    return f"sqlite:///{folder / FILE}"


def _sampler(kind: str, seed: int, number: int) -> "BaseSampler":
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return TPESampler(seed=drawn) if kind == "tpe" else RandomSampler(seed=drawn)


def _plain(trial: "FrozenTrial") -> Trial:
    return Trial(trial.number, trial.params, trial.value)


@contextmanager
def _storage_errors(storage: str, advice: str = CONTINUED) -> Iterator[None]:
    """Turn what the database reports into a `StoreError`."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise StoreError(f"Cannot use the study's storage {storage}: {cause}. {advice}") from error
