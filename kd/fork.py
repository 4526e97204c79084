"""`fork=FOLDER`: student and baseline start from the weights of another run's student; all else begins anew.

Both start there, so that what the student has over the baseline is what distillation adds from these weights on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.errors import ConfigError, StoreError
from kd.files import CHECKPOINTS, CONFIG, STUDENT, sha256
from kd.locks import is_owned

if TYPE_CHECKING:  # torch takes seconds to import, and a configuration is checked without it
    from torch import Tensor, nn

PREFIX = "student.network."  # of the student's weights in a checkpoint


@dataclass(frozen=True)
class Start:
    """Weights of a run's student: those in its folder of this SHA-256."""

    folder: str
    sha256: str

    def load_into(self, network: "nn.Module") -> None:
        """Fill a network. Raises `ConfigError` if it is another one than that of the weights, or if they are gone."""
        from kd.foreign_weights import check_layers

        path, state = self._weights()
        try:
            check_layers(network, state, path, f"choose the network that {Path(self.folder) / CONFIG} has")
        except StoreError as error:
            raise ConfigError(f"fork={self.folder}: {error}") from error
        network.load_state_dict(state)

    def _weights(self) -> tuple[Path, "dict[str, Tensor]"]:
        from kd.store import read_weights

        finished = Path(self.folder) / STUDENT
        if finished.is_file() and sha256(finished) == self.sha256:
            return finished, read_weights(finished)
        for path, digest, state in _checkpoints(Path(self.folder), []):
            if digest == self.sha256:
                return path, state
        raise ConfigError(
            f"fork={self.folder}: its student no longer has the weights of SHA-256 {self.sha256[:16]}... that this run "
            "started from. Put them back, or start from the present ones in a folder of this run's own."
        )


def find(given: Any) -> dict[str, str] | None:
    """Return `fork` as a run keeps it, folder and SHA-256: those of the finished student, else its last checkpoint.

    `given`: a folder, or both, as config.yaml has them. Raises `ConfigError` if there is nothing to start from.
    """
    if given is None or given is False:
        return None
    if isinstance(given, dict) and given.keys() == {"folder", "sha256"}:
        return {"folder": str(given["folder"]), "sha256": str(given["sha256"])}
    if not isinstance(given, str) or not given:
        raise ConfigError(
            f"Expected `fork` to name the folder of a run to start from, but got {given!r}. fork=true is the folder "
            "of hydra.run.dir, of a single run; in a sweep, or without hydra.run.dir, write fork=FOLDER."
        )
    folder = Path(given)
    if (finished := folder / STUDENT).is_file():
        return {"folder": given, "sha256": sha256(finished)}
    if not folder.is_dir():
        raise ConfigError(f"fork={given}: there is no such folder.")
    if is_owned(folder):
        raise ConfigError(f"fork={given}: its run is still at work. Wait until it is done, or end it with Ctrl-C.")
    damaged: list[str] = []
    for _, digest, _ in _checkpoints(folder, damaged):
        return {"folder": given, "sha256": digest}
    raise ConfigError(
        f"fork={given}: its student has no weights yet: there is no {STUDENT}, nor a whole checkpoint of the student's "
        f"training in {folder / CHECKPOINTS}{' (damaged: ' + ', '.join(damaged) + ')' if damaged else ''}. Continue "
        "that run until its student trains, or leave fork away."
    )


def _checkpoints(folder: Path, damaged: list[str]) -> "Iterator[tuple[Path, str, dict[str, Tensor]]]":
    """The whole checkpoints of a run's student, newest first: file, SHA-256, weights. Nothing there is changed."""
    from kd import checkpoints

    files = [path for path in (folder / CHECKPOINTS).glob("*.ckpt") if ".damaged-" not in path.name]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if checkpoints.damage(path):
            damaged.append(path.name)
            continue
        digest = checkpoints.read_position(path).digest
        content = checkpoints.CheckedIO().load_checkpoint(path)
        if content.get("arm") == "student":
            state = {name: value for name, value in content["state_dict"].items() if name.startswith(PREFIX)}
            yield path, digest, {name.removeprefix(PREFIX): value for name, value in state.items()}
