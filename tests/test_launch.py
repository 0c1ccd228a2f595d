"""Rank, size and meeting point from every kind of environment."""

from __future__ import annotations

import pytest

from crossover_comm.errors import InvalidArgument
from crossover_comm.launch import Launch, detect_launch, first_host

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "gpu[07-09,12]",
}
MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


def test_without_a_launcher_a_process_is_the_only_rank() -> None:
    launch = detect_launch(environ={"MASTER_ADDR": "left over"})
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (0, 1, 0, 1)


def test_torchrun_says_everything() -> None:
    assert detect_launch(environ=TORCHRUN) == Launch(
        rank=5,
        size=8,
        local_rank=1,
        local_size=4,
        master_addr="node0",
        master_port=29500,
        restart_count=2,
        agent_store=True,
        source="torchrun's variables",
    )


@pytest.mark.parametrize("value", ["False", None])
def test_rank_0_hosts_the_store_unless_the_agent_does(value: str | None) -> None:
    environ = without(TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE")
    if value is not None:
        environ["TORCHELASTIC_USE_AGENT_STORE"] = value
    assert not detect_launch(environ=environ).agent_store


def test_local_variables_of_torchrun_may_be_absent() -> None:
    launch = detect_launch(environ=without(TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    assert launch.local_rank is None
    assert launch.local_size is None


def test_open_mpi_is_understood_with_an_exported_master() -> None:
    launch = detect_launch(environ=OPEN_MPI | MASTER)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (2, 4, 0, 2)
    assert (launch.master_addr, launch.master_port) == ("node0", 29500)


def test_slurm_is_understood_and_a_job_step_has_its_own_port() -> None:
    launch = detect_launch(environ=SLURM)
    assert (launch.rank, launch.size, launch.local_rank) == (3, 6, 1)
    assert launch.master_addr == "gpu07"
    other = detect_launch(environ=SLURM | {"SLURM_STEP_ID": "1"})
    assert launch.master_port != other.master_port
    assert all(port and 1024 < port < 32768 for port in (launch.master_port, other.master_port))


def test_an_exported_master_overrides_slurms() -> None:
    launch = detect_launch(environ=SLURM | MASTER)
    assert (launch.master_addr, launch.master_port) == ("node0", 29500)


def test_torchrun_inside_slurm_wins() -> None:
    assert detect_launch(environ=SLURM | TORCHRUN).rank == 5


def test_arguments_win_over_the_environment() -> None:
    launch = detect_launch(1, 3, environ=TORCHRUN)
    assert (launch.rank, launch.size, launch.local_rank) == (1, 3, None)
    assert launch.master_port == 29500


def test_arguments_equal_to_the_environment_keep_what_else_it_says() -> None:
    launch = detect_launch(5, 8, environ=TORCHRUN)
    assert (launch.local_rank, launch.restart_count, launch.agent_store) == (1, 2, True)


def test_with_a_store_no_master_is_needed() -> None:
    assert detect_launch(1, 3, has_store=True, environ={}).size == 3


def test_one_rank_needs_no_master() -> None:
    assert detect_launch(0, 1, environ={}).size == 1
    assert detect_launch(environ={"RANK": "0", "WORLD_SIZE": "1"}).size == 1


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (without(TORCHRUN, "WORLD_SIZE"), r"found RANK=5, but WORLD_SIZE not set"),
        (without(TORCHRUN, "RANK"), r"found WORLD_SIZE=8, but RANK not set"),
        (without(TORCHRUN, "MASTER_ADDR"), r"rank 5 of 8, but MASTER_ADDR not set"),
        (TORCHRUN | {"RANK": "five"}, r"expected an integer in RANK, got 'five'"),
        (TORCHRUN | {"RANK": "8"}, r"expected 0 <= rank < size, got rank 8 and size 8"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, r"expected 0 <= local rank < local size"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, r"local size 9 is larger than size 8"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, r"port must be 1 to 65535, got 70000"),
        (OPEN_MPI, r"MASTER_ADDR and MASTER_PORT not set"),
        (without(OPEN_MPI, "OMPI_COMM_WORLD_SIZE"), r"OMPI_COMM_WORLD_SIZE not set"),
        (without(SLURM, "SLURM_STEP_NUM_TASKS"), r"SLURM_NTASKS=8, .* start it by srun"),
        (without(SLURM, "SLURM_JOB_NODELIST"), r"MASTER_ADDR not set"),
        (SLURM | {"SLURM_JOB_NODELIST": "gpu[a"}, r"cannot read the node list 'gpu\[a'"),
    ],
)
def test_an_incomplete_environment_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        detect_launch(environ=environ)


@pytest.mark.parametrize(("rank", "size"), [(1, None), (None, 4)])
def test_rank_and_size_come_together(rank: int | None, size: int | None) -> None:
    with pytest.raises(InvalidArgument, match=r"rank and size together or neither"):
        detect_launch(rank, size, environ={})


def test_a_batch_script_with_one_task_is_one_rank() -> None:
    environ = without(SLURM, "SLURM_STEP_NUM_TASKS") | {"SLURM_NTASKS": "1"}
    assert detect_launch(environ=environ).size == 1


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("login", "login"),
        ("a1,a2", "a1"),
        ("n[003-007,9],m1", "n003"),
        ("rack[2,4]-node[01-16]", "rack2-node01"),
        ("gpu-7.cluster.org", "gpu-7.cluster.org"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host
