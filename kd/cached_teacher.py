"""A teacher whose logits come out of a file. Exact, or it says so.

A view of an image has a number (`kd.data.views`), so that the logits of the views that an epoch will see are there, or
are computed, before its first step. They are computed in batches of the run's own size, because the last bits of a
product may depend on how large the batch is; a batch that is smaller, the last one of an epoch, is computed anew each
time. Whether the last bits depend on an image's place in its batch too is tried before a file is made.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd.cache_file import CacheFile, from_bits, to_bits
from kd.data.keyed import key_seed
from kd.data.resident import ResidentData
from kd.data.views import Views
from kd.errors import ConfigError, NumericError, StoreError
from kd.fingerprint import fingerprint
from kd.store import recipe_key
from kd.teachers import ITS_REMEDY, Teacher
from kd.types import Batch, Output

CHECKED = 64  # entries that are computed again in every epoch
PROBED = 8  # batches that are computed in two orders before a file is made
WRITTEN = 32  # batches between two writings
CHECKS_KEY = 0xC4EC  # sets the choice of what is checked apart from an epoch's other draws
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}  # of rounding


class Cached(Teacher):
    """A teacher whose logits come out of a file; between `begin_epoch` and `end_epoch` a step is one gather.

    Elsewhere, and once the cache has been given up for this training, the teacher runs.

    Args:
        models: the configurations of the teacher's networks.
        epochs: how many the training has.
        root: where the files of all caches are.
        insists: raise `StoreError` rather than let the teacher run in the steps.
        say: called with what a person should know.
    """

    def __init__(
        self,
        teacher: Teacher,
        data: ResidentData,
        *,
        models: Sequence[dict[str, Any]],
        epochs: int,
        root: Path,
        insists: bool,
        say: Callable[[str], None],
    ) -> None:
        self.teacher = teacher
        self.networks = teacher.networks
        self.seals = teacher.seals  # it seals what it makes of its networks
        self.data = data
        self.say = say
        self.models = list(models)
        self.epochs = epochs
        self.root = root
        self.insists = insists
        self.seconds, self.computed, self.served = 0.0, 0, 0
        self._file: CacheFile | None = None
        self._takes_channels_last: bool | None = None  # not known before the teacher is told to hurry
        self._layout = torch.contiguous_format  # of images, as in a training's steps
        self._stores = True  # whether what is computed is kept
        self._gone_live = False
        self._in_epoch = False
        self._logits = torch.empty(0)  # (N, classes), by row: of the present epoch; NaN where it has none

    def single(self) -> nn.Module | None:
        return self.teacher.single()

    def hurry(self, image: Tensor) -> bool:
        if self._takes_channels_last is None:
            self._takes_channels_last = self.teacher.hurry(image)
        return self._takes_channels_last

    def output(self, batch: Batch) -> Output | None:
        return Output(self._logits[batch.index], {}) if self._in_epoch else self.teacher.output(batch)

    def end_epoch(self) -> None:
        self._in_epoch = False

    def begin_epoch(self, epoch: int, *, channels_last: bool) -> None:
        """Have the logits of every view of this epoch ready on the training device. Counts as training time.

        Raises `StoreError` if a kept logit is not the teacher's, `ConfigError` for a teacher in train mode,
        `NumericError` for logits that are not finite; none of these is kept.
        """
        if self._gone_live:
            return
        started = time.perf_counter()
        if any(module.training for network in self.networks for module in network.modules()):
            raise ConfigError("The teacher is in train mode: its logits are not a function of the image. Call eval().")
        try:
            views = self.data.views()
        except ConfigError as error:  # on the training device it turns out that the images do not fit there
            self._gone_live = not self._go_live(str(error))
            return
        batches = self.data.training_rows(epoch)
        size = len(batches[0])
        whole = views.entries(torch.cat([rows for rows in batches if len(rows) == size]), epoch)
        with torch.no_grad():
            both = self.hurry(views.batch(whole[:size]).image) and channels_last
        self._layout = torch.channels_last if both else torch.contiguous_format
        if self._file is None and not self._open(views, whole, size, sum(map(len, batches))):
            self._gone_live = True
            return
        try:
            logits = self._obtain(views, whole, size)
        except OSError as error:
            self._gone_live = not self._go_live(f"{self.root} cannot be read ({error.strerror or error})")
            return
        if len(self._logits) == 0:  # one place for all epochs
            self._logits = logits.new_empty(len(views.images), logits.shape[1])
        self._logits.fill_(torch.nan)
        self._logits[views.rows(whole)] = logits
        for rows in batches:
            if len(rows) != size:
                rest = views.batch(views.entries(rows, epoch))
                self._logits[rest.index] = _finite(self._forward(rest))
        self._check(views, whole, size, epoch)
        self._in_epoch = True
        self.seconds += time.perf_counter() - started

    def summary(self, training_s: float) -> str | None:
        """How much the cache has served and cost; None if it was not used."""
        if self._gone_live or not self.served:
            return None
        return (
            f"teacher cached: {self.served:,} logits served, {self.computed:,} of them computed first; "
            f"{self.seconds:.1f} s before the epochs, {self.seconds / max(training_s, 1e-9):.0%} of the training"
        )

    # --- the file ---------------------------------------------------------------------------------------------------

    def _open(self, views: Views, whole: Tensor, size: int, images: int) -> bool:
        """Find or make the file of this teacher; False, having said why, if the teacher must run live."""
        if views.count >= 2**31:
            return self._go_live(f"{views.count:,} views are too many to number")
        identity = fingerprint(self.teacher, self.models, self.data, views, size, self._layout)
        folder = self.root / recipe_key(identity)
        try:
            found = CacheFile.find(folder, identity)
            if found is None:
                found = CacheFile.create(
                    folder, {"identity": identity, **self._probe(views, whole[: PROBED * size], size)}
                )
        except OSError as error:
            return self._go_live(f"{folder} cannot be used ({error.strerror or error})")
        meta = found.meta
        if not (meta["exact"] or self.insists):
            return self._go_live(_inexact(meta))
        if not self._fits(found, images):
            needed, free = self._needed_bytes(found, images), _free_bytes(folder)
            return self._go_live(f"the cache may take {_size(needed)}, and {folder} has {_size(free)} free")
        self._file = found
        self.say(
            f"teacher cached: {views.augment.views} views x {len(views.images):,} images, up to "
            f"{_size(views.count * found.entry_bytes)} in {folder}, {len(found) / views.count:.0%} filled"
            + ("" if meta["exact"] else f"; not bit by bit the live teacher's: {_inexact(meta)}")
        )
        return True

    def _go_live(self, reason: str) -> bool:
        if self.insists:
            raise StoreError(f"teacher.cache=only is not possible here: {reason}. Use teacher.cache=auto or off.")
        self.say(f"teacher live: {reason}")
        return False

    def _needed_bytes(self, file: CacheFile, images: int) -> int:
        """What this training can add to the file."""
        missing: int = file.meta["entries"] - len(file)
        return min(images * self.epochs, missing) * file.entry_bytes

    def _fits(self, file: CacheFile, images: int) -> bool:
        """Whether what this training can add leaves half of the free disk."""
        return self._needed_bytes(file, images) <= _free_bytes(file.folder) // 2

    def _probe(self, views: Views, entries: Tensor, size: int) -> dict[str, Any]:
        """Compute some batches as they come and in another order: what a new file must say of its logits."""
        logits = self._compute(views, entries, size)
        order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(0)).to(entries.device)
        again = torch.empty_like(logits)
        again[order] = self._compute(views, entries[order], size)
        return {
            "entries": views.count,
            "classes": logits.shape[1],
            "itemsize": logits.element_size(),
            "dtype": str(logits.dtype).removeprefix("torch."),
            "exact": bool((to_bits(logits) == to_bits(again)).all()),
            "difference": _difference(logits, again),
        }

    # --- an epoch ---------------------------------------------------------------------------------------------------

    def _obtain(self, views: Views, entries: Tensor, size: int) -> Tensor:
        """The logits (n, classes) of these entries: what the file has, and the rest computed and added to it."""
        assert self._file is not None
        wanted = entries.cpu().numpy()
        bits, there = self._file.read(wanted)
        missing = np.flatnonzero(~there)
        for start in range(0, len(missing), WRITTEN * size):
            part = missing[start : start + WRITTEN * size]
            bits[part], there = self._file.read(wanted[part])  # another run may have filled them meanwhile
            part = part[~there]
            if len(part):
                bits[part] = to_bits(self._compute(views, entries[torch.from_numpy(part).to(entries.device)], size))
                self._keep(wanted[part], bits[part])
            self.computed += len(part)
        self.served += len(wanted)
        return from_bits(bits, getattr(torch, self._file.meta["dtype"])).to(entries.device)

    def _keep(self, entries: np.ndarray, bits: np.ndarray) -> None:
        """Add to the file; if the disk is full, the file stays as it is and the training goes on without adding."""
        assert self._file is not None
        if not self._stores:
            return
        try:
            self._file.write(entries, bits)
        except OSError as error:
            self._stores = False
            self.say(
                f"teacher cache {self._file.folder} takes no more ({error.strerror or error}): what it does not "
                "have is computed before each epoch"
            )

    def _compute(self, views: Views, entries: Tensor, size: int) -> Tensor:
        """The teacher's logits (n, classes) of these entries, in batches of exactly this size."""
        found = []
        for part in torch.split(entries, size):
            filled_up = part[torch.arange(size, device=part.device) % len(part)]
            found.append(self._forward(views.batch(filled_up))[: len(part)])
        return _finite(torch.cat(found))

    def _forward(self, batch: Batch) -> Tensor:
        output = self.teacher(batch._replace(image=batch.image.contiguous(memory_format=self._layout)))
        assert output is not None
        return output.logits

    def _check(self, views: Views, entries: Tensor, size: int, epoch: int) -> None:
        """Compute some of what the steps will be given once more, from images that the datamodule itself has made."""
        assert self._file is not None
        generator = torch.Generator().manual_seed(key_seed(views.seed, epoch) ^ CHECKS_KEY)
        chosen = entries[torch.randint(len(entries), (CHECKED,), generator=generator).to(entries.device)]
        for part in torch.split(chosen, size):
            rows = views.rows(part[torch.arange(size, device=part.device) % len(part)])
            logits, kept = self._forward(self.data.on_device(views.raw(rows), rows.device)), self._logits[rows]
            wrong = (to_bits(logits) != to_bits(kept)).any(1)[: len(part)]
            if not self._file.meta["exact"]:
                wrong &= _difference(logits, kept) > TOLERANCE[logits.dtype] * float(logits.abs().max())
            if wrong.any():
                place = int(np.flatnonzero(wrong)[0])
                raise StoreError(
                    f"The teacher cache {self._file.folder} is wrong: of {len(part)} entries that were computed again "
                    f"before epoch {epoch + 1}, {wrong.sum()} differ, entry {int(part[place])} (image "
                    f"{int(rows[place])}) by up to {_difference(logits[place], kept[place]):g}. Delete that folder; it "
                    "is filled again. If that does not help, the teacher or the transform is not what it was taken "
                    "for: set teacher.cache=off."
                )


def _finite(logits: Tensor) -> Tensor:
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise NumericError(
            f"The teacher's logits of {bad:,} of {len(logits):,} images are NaN or infinite. {ITS_REMEDY}"
        )
    return logits


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference between two tensors of logits."""
    return float((one.double() - other.double()).abs().max())


def _inexact(meta: dict[str, Any]) -> str:
    return (
        f"the last bits of its logits depend on an image's place in its batch here (by up to {meta['difference']:.0e})"
    )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"
