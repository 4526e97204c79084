"""Relations within a batch, in two processes: the averaged gradient is that of one process with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from kd.losses.correlation import CorrelationCongruence
from kd.losses.crd import CRD
from kd.losses.pkt import PKT
from kd.losses.rkd import RKDAngle, RKDDistance
from kd.losses.similarity import SimilarityPreserving
from kd.losses.term import Setting, Term
from kd.types import Batch, Output

IMAGES = 8
TERMS = {
    "rkd_distance": RKDDistance,
    "rkd_angle": RKDAngle,
    "pkt": PKT,
    "similarity": SimilarityPreserving,
    "correlation": CorrelationCongruence,
    "crd": lambda: CRD(negatives=4, dimension=3),
}
SPLITS = [(4, 4), (5, 3), (1, 7)]
ROLES = {"embedding": "feature", "stages": ["feature"]}


def built(name: str) -> tuple[torch.nn.Module, Term]:
    """Return a small linear student and a term built for it; equal in every process."""
    torch.manual_seed(0)
    student, term = torch.nn.Linear(5, 4).double(), TERMS[name]()
    term.resolve(ROLES, ROLES)
    outputs = (Output(torch.zeros(2, 2), {"feature": torch.zeros(2, width)}) for width in (4, 6))
    labels = torch.arange(IMAGES) % 2
    images = lambda: (torch.arange(IMAGES), labels)  # noqa: E731
    term.build(Setting(*outputs, student, student, num_classes=2, transfer_set=images))
    return student, term.double()


def gradients(name: str, rows: slice) -> dict[str, list[float]]:
    """Return the loss of some images of the batch, and its gradient in every parameter of student and term.

    Two steps, so that memories which the first one renews matter to the second.
    """
    student, term = built(name)
    generator = torch.Generator().manual_seed(1)
    image, teacher = (torch.randn(IMAGES, n, generator=generator, dtype=torch.float64) for n in (5, 6))
    batch = Batch(image[rows], (torch.arange(IMAGES) % 2)[rows], torch.arange(IMAGES)[rows])
    values = []
    for _ in range(2):
        feature = student(batch.image)
        value = term(Output(feature, {"feature": feature}), Output(feature, {"feature": teacher[rows]}), batch)
        value.backward()
        values.append(value.item())
    parameters = [*student.parameters(), *term.parameters()]
    return {"loss": values, "gradient": torch.cat([p.grad.flatten() for p in parameters]).tolist()}


def worker(rank: int, folder: str) -> None:
    """One of two processes: write what it computes of every term and split."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for first, _ in SPLITS:
        rows = slice(first) if rank == 0 else slice(first, None)
        found[str(first)] = {name: gradients(name, rows) for name in TERMS}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of two processes computed."""
    folder = tmp_path_factory.mktemp("processes")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env={**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", TERMS)
def test_two_processes_agree_with_one(answers, name, split):
    whole = gradients(name, slice(None))
    first, second = (answer[str(split[0])][name] for answer in answers)
    assert first["loss"] == pytest.approx(whole["loss"], rel=1e-9)
    assert second["loss"] == pytest.approx(whole["loss"], rel=1e-9)
    averaged = [(a + b) / 2 for a, b in zip(first["gradient"], second["gradient"], strict=True)]
    assert max(map(abs, averaged)) > 0
    scale = max(map(abs, whole["gradient"]))
    assert averaged == pytest.approx(whole["gradient"], rel=0, abs=1e-9 * scale)


@pytest.mark.parametrize("name", TERMS)
def test_the_whole_batch_matters(name):
    """Without gathering, the two halves' own losses would have another gradient: the test above can fail."""
    whole, first, second = (gradients(name, rows) for rows in (slice(None), slice(4), slice(4, None)))
    averaged = [(a + b) / 2 for a, b in zip(first["gradient"], second["gradient"], strict=True)]
    assert averaged != pytest.approx(whole["gradient"], rel=1e-3)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
