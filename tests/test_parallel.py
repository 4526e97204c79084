"""Data-parallel runs: two processes find what one finds, fail as one does, and continue where they were cut off."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kd import build, checkpoints, folder, launch, parallel, shared_folder, train
from kd.curves import read_metrics
from kd.dry_run import dry_run
from kd.errors import ConfigError, StoreError
from kd.global_norm import GlobalNorms, refuse_unknown_norms
from kd.recipe import plan
from tests.commands import QUICK, Command, configured, started, wait_for
from tests.sweep import cluster
from tests.two_processes import CASES, train_all

ROOT = Path(__file__).parents[1]
TWO = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
#: long enough to be interrupted; the last batch has 5 images for two processes
LONG = ("trainer.max_epochs=12", "data.train_limit=325", "data.augment=shift", "logger=csv", "latency=false")
TOLERANCE = 1e-6


@pytest.fixture
def alone(monkeypatch):
    """Without variables of a launcher that the tests themselves may run under."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", launch.MEETING):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return started(folder, *LONG, *arguments)


def wait_for_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    wait_for(process, lambda: list(folder.glob("outputs/digits_kd/*/checkpoints/*.ckpt")))


def children(process: subprocess.Popen) -> list[int]:
    """The processes that a process has started, by rank."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- the same result --------------------------------------------------------------------------------------------------


def test_every_method_trains_the_same_on_two_processes(tmp_path, monkeypatch, alone):
    """Weights of all networks and curves after some steps, with uneven shares; all cases in one pair of processes."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    assert launch.launch([str(tmp_path / "two")], "tests.two_processes", processes=2) == 0
    train_all(tmp_path / "one", "auto", 1)
    problems, compared = [], 0
    for case in CASES:
        one, two = tmp_path / "one" / case, tmp_path / "two" / case
        entries = sorted(path.parent.name for path in one.glob("*/weights.safetensors"))
        if entries != sorted(path.parent.name for path in two.glob("*/weights.safetensors")) or not entries:
            problems.append(f"{case}: other networks")
            continue
        for entry in entries:
            expected, found = (load_file(root / entry / "weights.safetensors") for root in (one, two))
            for name, value in expected.items():
                error = (found[name].double() - value.double()).abs().max() if value.numel() else torch.tensor(0.0)
                if error > TOLERANCE * max(1.0, float(value.double().abs().max()) if value.numel() else 1.0):
                    problems.append(f"{case}: {entry} {name} differs by {error}")
                compared += 1
            curves = [read_metrics(root / entry / "metrics.csv") for root in (one, two)]
            for a, b in zip(*curves, strict=True):
                if a["name"] != b["name"] or float(a["value"]) != pytest.approx(float(b["value"]), rel=1e-5, abs=1e-6):
                    problems.append(f"{case}: {a} is not {b}")
    assert not problems, "\n".join(problems)
    assert compared > 1000


def test_a_lost_process_ends_the_run_and_the_same_command_continues_it(tmp_path, tmp_path_factory, monkeypatch, capfd):
    process = start(tmp_path, *TWO)
    wait_for_checkpoint(process, tmp_path)
    leader, follower = children(process)
    os.kill(follower, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL
    assert "process 2 of 2 was ended by SIGKILL" in errors
    assert "The same command continues the run" in errors
    assert "Traceback" not in errors
    assert not is_alive(leader)

    again = start(tmp_path, *TWO)
    out, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert "continuing after epoch" in out
    assert out.count("student  training 12 epochs on 2 processes") == 1  # one of them prints
    assert out.count("page: ") == 1
    assert errors == ""

    monkeypatch.setattr("signal.signal", lambda *_: None)
    single = Command(tmp_path_factory.mktemp("single"), monkeypatch, capfd)
    assert single(*LONG, "trainer.accelerator=cpu").status == 0
    [two], [one] = (list(root.glob("outputs/digits_kd/*/result.json")) for root in (tmp_path, single.folder))
    assert one.parent.name == two.parent.name  # one and the same run, and the same networks
    expected, found = (json.loads(path.read_text()) for path in (one, two))
    for arm, block in expected["arms"].items():
        assert found["arms"][arm]["store_key"] == block["store_key"]
        assert found["arms"][arm]["test"]["accuracy"] == pytest.approx(block["test"]["accuracy"], abs=1e-9)
        assert found["arms"][arm]["test"]["nll"] == pytest.approx(block["test"]["nll"], rel=1e-3)
        assert found["arms"][arm]["val"]["nll"] == pytest.approx(block["val"]["nll"], rel=1e-3)
    rows = [read_metrics(path.parent / "metrics.csv") for path in (one, two)]
    for a, b in zip(*rows, strict=True):
        assert [a[key] for key in ("arm", "epoch", "step", "name")] == [
            b[key] for key in ("arm", "epoch", "step", "name")
        ]
        assert float(a["value"]) == pytest.approx(float(b["value"]), rel=1e-3, abs=1e-5)


def test_dropout_draws_other_masks_in_every_process():
    from kd.data.keyed import key_seed

    assert key_seed(3, 4, 0) == key_seed(3, 4)
    assert len({key_seed(3, 4, rank) for rank in range(8)}) == 8


@pytest.mark.slurm
def test_the_tasks_of_srun_are_the_processes_of_a_run(tmp_path, monkeypatch, alone):
    if reason := cluster.missing():
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "slurm").mkdir()

    def srun(tasks: int, *arguments: str) -> subprocess.CompletedProcess:
        command = ["srun", f"--ntasks-per-node={tasks}", "--kill-on-bad-exit=1", sys.executable, "-m", "kd.run"]
        return subprocess.run([*command, *QUICK, *TWO, *arguments], capture_output=True, text=True, timeout=300)

    with cluster.started(tmp_path / "slurm"):
        done = srun(2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("student  training 2 epochs on 2 processes") == 1
        assert "Traceback" not in done.stderr and "c10" not in done.stderr
        wrong = srun(3, "seed=1")
        assert wrong.returncode  # srun's, who ends the others when one has failed
        assert wrong.stderr.count("3 processes were started for this run") == 1


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sign", "word"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Terminated")])
def test_a_signal_ends_all_processes_with_one_message(tmp_path, sign, word):
    process = start(tmp_path, *TWO, "trainer.max_epochs=100")
    wait_for_checkpoint(process, tmp_path)
    started = children(process)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + sign
    errors = errors.removeprefix("Saving; Ctrl-C again leaves at once.\n")  # unless it was saved already
    assert errors == f"{word}. The same command continues the run.\n"
    assert not any(is_alive(pid) for pid in started)


def test_a_loss_that_is_not_finite_ends_all_processes_with_one_message(tmp_path):
    process = start(tmp_path, *TWO, "optim.optimizer.lr=1e30")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 5
    assert errors.count("NaN or infinite") == 1
    assert "Traceback" not in errors


MEMBER = """
import os, signal, sys, time
from kd.parallel import _end_with_parent, here
_end_with_parent()
rank = here().rank
for act in sys.argv[1:]:
    who, what, value = act.split(":")
    if int(who) == rank:
        if what == "kill":
            os.kill(os.getpid(), int(value))
        if what == "wait":
            time.sleep(float(value))
        if what == "exit":
            sys.exit(int(value))
print("process", rank, "of", here().world, os.environ["OMP_NUM_THREADS"], flush=True)
"""


@pytest.fixture
def member(tmp_path, monkeypatch, alone):
    """A module to launch, which does as it is told."""
    (tmp_path / "member.py").write_text(MEMBER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    def start(*acts: str) -> int:
        if acts:  # some wait for ever; without any, a busy machine may start one much later than another
            monkeypatch.setattr(launch, "GRACE_S", 0.3)
        return launch.launch(acts, "member", processes=3)

    return start


@pytest.mark.parametrize(
    ("acts", "status"),
    [
        ((), 0),
        (("0:wait:3",), 0),  # the others have ended well, and the first takes its time
        (("0:exit:4", "1:wait:60", "2:wait:60"), 4),
        (("1:exit:3", "0:wait:60", "2:wait:60"), 3),
        (("1:kill:9", "0:wait:60", "2:wait:60"), 137),
        (("2:kill:15", "1:wait:60", "0:wait:60"), 143),
        (("1:wait:60", "2:wait:60"), 0),  # all is done, and the others are told to go
    ],
)
def test_the_first_failure_is_the_status_and_ends_the_others(member, capfd, acts, status):
    started = time.monotonic()
    assert member(*acts) == status
    assert time.monotonic() - started < 30
    killed = [act for act in acts if "kill" in act]
    rank = int(killed[0][0]) + 1 if killed else 0
    assert capfd.readouterr().err.count(f"process {rank} of 3 was ended by SIG") == len(killed)


def test_processes_know_their_places_and_share_the_cores(member, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert member() == 0
    assert sorted(capfd.readouterr().out.splitlines()) == [f"process {rank} of 3 2" for rank in range(3)]


def test_the_processes_end_with_the_one_that_started_them(member, tmp_path):
    command = "import sys; from kd.launch import launch; launch(sys.argv[1:], 'member', processes=2)"
    process = subprocess.Popen([sys.executable, "-c", command, "0:wait:100", "1:wait:100"], env=dict(os.environ))
    started = time.monotonic()
    while len(started_ones := children(process)) < 2:
        assert time.monotonic() - started < 60
        time.sleep(0.05)
    time.sleep(1)
    process.kill()
    process.wait()
    while any(is_alive(pid) for pid in started_ones):
        assert time.monotonic() - started < 60
        time.sleep(0.05)


# --- what is refused, and who is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.devices=2"], ["trainer=ddp", "2"]),
        (["trainer.num_nodes=2"], ["trainer=ddp"]),
        (["trainer=ddp", "trainer.devices=0"], ["trainer.devices", "0"]),
        (["trainer=ddp", "trainer.devices=[]"], ["trainer.devices", "[]"]),
        (["trainer=ddp", "trainer.devices=[0,0]"], ["twice", "[0, 0]"]),
        (["trainer=ddp", "trainer.devices=true"], ["trainer.devices", "True"]),
        (["trainer=ddp", "trainer.devices=many"], ["trainer.devices", "'many'"]),
        (["trainer=ddp", "trainer.accelerator=mps"], ["mps", "cpu, cuda, gpu"]),
        (["trainer=ddp", "trainer.num_nodes=0"], ["trainer.num_nodes", "0"]),
        (["trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2"], ["torchrun", "srun", "--nproc-per-node=2"]),
        (["trainer.strategy=fsdp"], ["fsdp", "trainer=ddp"]),
        (["trainer.strategy=dpp"], ["'dpp'", "Did you mean 'ddp'", "auto, ddp"]),
    ],
    ids=lambda value: ",".join(value) if "=" in value[0] else "",
)
def test_what_cannot_work_is_said_before_a_process_is_started(tmp_path, monkeypatch, capsys, alone, arguments, words):
    monkeypatch.setattr(parallel, "launch", lambda *_, **__: pytest.fail("processes were started"))
    done = Command(tmp_path, monkeypatch, capsys)(*QUICK, *arguments)
    assert done.status == 2
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.train_limit=129", "data.batch_size=64"], ["last batch has only 1", "2 processes", "64 images"]),
        (["data.batch_size=1"], ["a batch has only 1"]),
        (["data.val=1"], ["validation images", "only 1"]),
    ],
    ids=lambda value: ",".join(value) if "=" in value[0] else "",
)
def test_a_process_without_images_is_refused(arguments, words):
    config = configured(*QUICK, *arguments)
    data = build.data(config)
    dry_run(plan(config, data), data)
    with pytest.raises(ConfigError) as refused:
        dry_run(plan(config, data), data, processes=2)
    assert all(word in str(refused.value) for word in words), refused.value


def test_data_with_an_order_of_its_own_are_refused():
    from kd.data import DistillationData

    class Own(DistillationData):
        name = "Own"
        use = identity = counts = None

    Own.__abstractmethods__ = frozenset()
    with pytest.raises(ConfigError, match="Own has an order of its own"):
        Own().images_in_batch(0)


def test_norms_that_cannot_see_all_images_are_refused():
    class WithActivation(nn.BatchNorm2d):
        pass

    refuse_unknown_norms(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.GroupNorm(1, 2)), "student")
    with pytest.raises(ConfigError, match="'0' of the student is a WithActivation, which"):
        refuse_unknown_norms(nn.Sequential(WithActivation(2)), "student")
    with pytest.raises(ConfigError, match="without running statistics"):
        refuse_unknown_norms(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), "student")


def asked(**settings):
    return configured("trainer=ddp", *(f"trainer.{name}={value}" for name, value in settings.items())).trainer


def test_processes_of_torchrun_and_srun_are_used_as_they_are(monkeypatch, alone):
    assert parallel.processes_to_launch(asked(devices=3, accelerator="cpu")) == 3
    assert parallel.processes_to_launch(asked(devices=1)) == 0
    assert parallel.processes_to_launch(asked(devices="auto", accelerator="cpu")) == 0
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    srun = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"}
    for variables in (torchrun, srun):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            trainer = asked(devices=4, num_nodes=2)
            assert parallel.processes_to_launch(trainer) == 0
            assert parallel.place(trainer) == parallel.Place(5, 8, 1, 4)
            assert parallel.follows(trainer)
            for wrong in (asked(devices=8), asked(devices=2, num_nodes=4), asked(devices=4)):
                with pytest.raises(ConfigError, match=r"8 processes were started.*--ntasks-per-node="):
                    parallel.place(wrong)
            assert parallel.place(configured().trainer) == parallel.Place()  # every process is a run of its own
    with monkeypatch.context() as patch:  # the shell of a SLURM job, which has no tasks but itself
        patch.setenv("SLURM_PROCID", "0")
        patch.setenv("SLURM_NTASKS", "8")
        assert parallel.processes_to_launch(asked(devices=2)) == 2


def test_the_devices_decide_no_result():
    plain = folder.config_hash(configured())
    assert plain == "63835d67"  # of every default run so far
    for devices in ("2", "auto", "[0,1]"):
        assert folder.config_hash(configured("trainer=ddp", f"trainer.devices={devices}")) == plain
    assert folder.short(["trainer=ddp", "trainer.devices=2", "seed=1"]) == "seed-1"


# --- batch norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_a_global_norm_is_a_batch_norm_and_gives_way_to_it_again(momentum, affine):
    def network() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum, affine=affine), nn.Flatten(1))

    plain, synced, sync = network(), network(), GlobalNorms()
    original = synced[1]
    assert sync.apply(synced) is synced
    assert type(synced[1]) is not nn.BatchNorm2d
    for _ in range(3):
        image = torch.randn(5, 3, 6, 6)
        outputs = [one(image) for one in (plain, synced)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.square().mul(torch.arange(output.shape[1])).mean().backward()
    for one, other in zip(plain.parameters(), synced.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(plain.state_dict(), synced.state_dict())
    torch.testing.assert_close(plain.eval()(image), synced.eval()(image))
    sync.revert(synced)
    assert synced[1] is original and not original.training
    torch.testing.assert_close(plain.state_dict(), synced.state_dict())


def test_processes_begin_at_the_same_epoch_or_not_at_all(tmp_path, monkeypatch):
    """Another machine may still see the checkpoint before the last one, or none."""
    monkeypatch.setattr(shared_folder, "PATIENCE_S", 0.0)
    checkpoint = tmp_path / "network.ckpt"
    for epoch in (3, 4):
        checkpoints.CheckedIO().save_checkpoint({"epoch": epoch - 1}, checkpoint)
    for told in (checkpoint, checkpoints.previous(checkpoint)):
        found = checkpoints.read_position(told)
        assert train._agreed(checkpoint, found.digest) == found
    with pytest.raises(
        StoreError, match="is not the checkpoint that the training goes on from: the run folder must be"
    ):
        train._agreed(checkpoint, "0" * 64)
