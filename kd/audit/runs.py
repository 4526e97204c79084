"""The runs of an audit: which there are, and how those that are missing come about.

A run is found by its configuration's hash (`kd.folder.find_finished`). One that is missing is a process of its own,
`python -m kd.run ...`: what breaks in it breaks nothing here, and one that was cut off continues where it was.
"""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kd import claims, leaving
from kd.audit.evidence import CONTROLS, SMOOTHING, Evidence, Failure
from kd.audit.request import PREFIX, Request, below, key
from kd.audit.settings import own_settings, without_aside
from kd.cli import compose
from kd.errors import ConfigError, DataError, UserError
from kd.folder import config_hash, find_finished
from kd.report.read import Run, read_run
from kd.rules import TEACHERS, check
from kd.schema import ComparisonConfig, RunConfig

#: kinds of teacher that leave a run without a teacher's arm
NO_TEACHER = ("none", "virtual", "ema")
#: settings that go with a kind of teacher
OF_KIND = ("teacher.kind", *(f"teacher.{s}" for s in ("path", *(s for names in TEACHERS.values() for s in names))))
#: overrides about the teacher that say nothing about its recipe
KEPT = ("teacher.seed", "teacher.cache")


@dataclass(frozen=True)
class Job:
    """One run: the overrides that make it, and its checked configuration."""

    overrides: list[str]
    config: RunConfig

    @property
    def command(self) -> str:
        return shlex.join(["python", "-m", "kd.run", *self.overrides])


@dataclass
class Planned:
    """Every run that an audit needs: its own, those that a comparison is `versus`, and the controls, by seed."""

    main: dict[int, Job]
    versus: dict[tuple[str, ...], dict[int, Job]]
    controls: dict[str, dict[int, Job]]
    same_as_student: list[str]

    def jobs(self) -> list[Job]:
        groups = [self.main, *self.versus.values(), *self.controls.values()]
        return [job for group in groups for job in group.values()]


def plan(request: Request) -> Planned:
    """Compose and check every run of the audit. Raises for the first mistake, before anything is trained."""
    base = [f"experiment={request.experiment}", *request.overrides]
    main = _jobs(base, [], request.seeds)
    first = main[request.seeds[0]].config
    comparisons = claims.comparisons(first.claim)
    _check_arms(comparisons, first)
    versus = {tuple(c.versus): _jobs(base, list(c.versus), request.seeds) for c in comparisons.values() if c.versus}
    controls, same = {}, []
    for name in CONTROLS if request.controls else ():
        jobs = _jobs(*_control(name, base, first), request.seeds)
        if any(config_hash(jobs[seed].config) == config_hash(main[seed].config) for seed in request.seeds):
            same.append(name)
        else:
            controls[name] = jobs
    return Planned(main, versus, controls, same)


def gather(request: Request, planned: Planned, say: Callable[[str], None]) -> Evidence:
    """Find or train every run.

    Raises:
        UserError: the first run that is needed finds a mistake that the configuration did not show (status 2 or 3, the
            data are missing say): nothing has been trained yet, and the others would find it too.
    """
    config = next(iter(planned.main.values())).config
    assert request.experiment is not None
    evidence = Evidence(
        experiment=config.experiment,
        command=shlex.join([*PREFIX.split(), *(a for a in request.given if not a.startswith("out="))]),
        settings=asdict(config),
        own=own_settings(request.experiment),
        seeds=request.seeds,
        comparisons=claims.comparisons(config.claim),
        controls={} if request.controls else None,
        same_as_student=planned.same_as_student,
    )
    evidence.itself = {
        overrides
        for overrides, group in planned.versus.items()
        if without_aside(asdict(group[request.seeds[0]].config)) == without_aside(evidence.settings)
    }
    jobs = planned.jobs()
    missing = [job for job in jobs if find_finished(job.config) is None]
    say(f"{config.experiment}: {len(jobs)} runs, {len(jobs) - len(missing)} of them finished before")
    failed: dict[str, Failure] = {}
    for number, job in enumerate(missing, 1):
        if find_finished(job.config) is None:  # two parts of an audit may need the same run
            say(f"run {number} of {len(missing)}: {job.command}")
            if failure := _run(job):
                if number == 1 and failure.status in (UserError.status, DataError.status):
                    raise _like(failure)
                failed[job.command] = failure
                say(f"failed with status {failure.status}; the audit goes on without it")
    evidence.failed = list(failed.values())
    evidence.runs = _read(planned.main)
    evidence.versus = {overrides: _read(group) for overrides, group in planned.versus.items()}
    if evidence.controls is not None:
        evidence.controls = {name: _read(group) for name, group in planned.controls.items()}
    return evidence


def _jobs(base: list[str], more: list[str], seeds: list[int]) -> dict[int, Job]:
    """One run per seed. An override in `more` takes the place of one of the same key, and of those below its choice."""
    overrides = [*(override for override in base if not any(_replaces(other, override) for other in more)), *more]
    composed = compose(overrides)  # once, which takes longest
    jobs = {}
    for seed in seeds:
        composed.seed = seed
        jobs[seed] = Job([*overrides, f"seed={seed}"], check(composed))
    return jobs


def _replaces(new: str, old: str) -> bool:
    """Whether an override leaves no place for another: method=kd does not for method=fitnets nor method.initial.epochs.

    What is said of a teacher holds for every kind of it, but for the settings that only some kinds have.
    """
    if key(new) == key(old):
        return True
    if key(new) == "teacher":
        return key(old) in OF_KIND
    return key(old).startswith(f"{below(new)}.")


def _control(name: str, base: list[str], config: RunConfig) -> tuple[list[str], list[str]]:
    """The overrides that a control keeps, and those that make it. What an experiment sets for its teacher gives way."""
    if name == SMOOTHING:
        return base, ["baseline.label_smoothing=0.1"]
    if name == "random teacher":
        # a teacher without a network of its own has the student's
        network = ["teacher.model=${student}"] if config.teacher.kind in ("self", *NO_TEACHER) else []
        return base, ["teacher=random", *network]
    of_teacher = [o for o in base if key(o).startswith("teacher") or "@teacher" in key(o)]
    recipe = ["teacher.augment=null", "teacher.optim=null", "teacher.max_epochs=null", "teacher.label_smoothing=0.0"]
    return [o for o in base if o not in of_teacher or key(o) in KEPT], ["teacher=self", *recipe]


def _check_arms(comparisons: dict[str, ComparisonConfig], config: RunConfig) -> None:
    for name, comparison in comparisons.items():
        if "teacher" in (comparison.arm, comparison.minus) and config.teacher.kind in NO_TEACHER:
            raise ConfigError(
                f"claim.comparisons.{name} compares the teacher, but with teacher={config.teacher.kind} there is no "
                "teacher's network to measure."
            )


def _run(job: Job) -> Failure | None:
    """Do a run in a process of its own, whose output is shown as it comes; None if it finished.

    The process is not in our group, so that Ctrl-C reaches it once: from here, and the audit waits until it has left.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "kd.run", *job.overrides], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        with leaving.orderly():
            _, errors = process.communicate()
    except BaseException as interruption:
        process.send_signal(signal.SIGTERM if isinstance(interruption, SystemExit) else signal.SIGINT)
        process.communicate()
        raise
    print(errors, end="", file=sys.stderr)
    if process.returncode == 0 and find_finished(job.config) is not None:
        return None
    lines = [line for line in errors.splitlines() if line.strip()]
    said = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    error = (said or lines or ["it left no result where its configuration says"])[-1]
    return Failure(job.config.seed, job.command, process.returncode, error)


def _like(failure: Failure) -> UserError:
    kind = ConfigError if failure.status == ConfigError.status else DataError
    return kind(f"{failure.error} (from {failure.command})")


def _read(jobs: dict[int, Job]) -> dict[int, Run]:
    folders: dict[int, Path | None] = {seed: find_finished(job.config) for seed, job in jobs.items()}
    return {seed: read_run(folder) for seed, folder in folders.items() if folder is not None}
