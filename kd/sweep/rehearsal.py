"""Before anything is trained, jobs of a sweep are tried on one batch: what a configuration alone does not show."""

from collections.abc import Iterable

from kd.errors import ConfigError, UserError
from kd.sweep.networks import Plans
from kd.sweep.plan import Arguments, Job, refuse
from kd.sweep.task import Launcher


def rehearse(plans: Plans, arguments: Arguments, jobs: list[Job], launcher: Launcher) -> None:
    """Try jobs on one batch until every value of the sweep has had its turn; raises one error for all mistakes.

    Of mistakes that are all of one kind, missing data say, it is the kind that a run would have raised.
    """
    mistakes: dict[str, list[str]] = {}
    kinds: set[type[UserError]] = set()
    tried = covering(arguments, jobs)
    for job in tried:
        try:
            launcher.check(job.config)
            plans.rehearse(job.config)
        except UserError as error:
            mistakes.setdefault(str(error), []).append(job.words)
            kinds.add(type(error))
    refuse(mistakes, len(tried), " that were tried", kinds.pop() if len(kinds) == 1 else ConfigError)


def covering(arguments: Arguments, jobs: Iterable[Job]) -> list[Job]:
    """Jobs that together have every combination of config groups, and with it every single value, of the sweep.

    Seeds change no shape, and are left out.
    """
    groups = {axis.key for axis in arguments.axes if axis.is_group}
    seen: set[tuple[tuple[str, ...], str]] = set()
    found = []
    for job in jobs:
        key = {override: override.partition("=")[0] for override in job.overrides}
        choices = tuple(override for override in job.overrides if key[override] in groups)
        values = {(choices, o) for o in job.overrides if key[o] not in groups and key[o] != "seed"} or {(choices, "")}
        if values - seen:
            seen |= values
            found.append(job)
    return found
