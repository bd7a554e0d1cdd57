"""Flags that go together, what JAX's last words mean, arrays and parts of batches on meshes."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from contextdiff_jax.parallel import abort_reasons, distributed
from contextdiff_jax.parallel.distributed import Processes
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.parallel.sharding import batch_sharding

ADDRESS = "10.0.0.1:1234"


@pytest.mark.parametrize(
    ("processes", "sentence"),
    [
        (Processes("none", ADDRESS), "--distributed=none runs one process: --coordinator must not"),
        (Processes("auto", ADDRESS, 2), "--process_id is missing: .* given together"),
        (Processes("auto", None, None, 0), "--coordinator is missing"),
        (Processes("explicit"), "--coordinator is missing"),
        (Processes("auto", "10.0.0.1", 2, 0), "--coordinator=10.0.0.1: must be HOST:PORT"),
        (Processes("auto", ADDRESS, 2, 2), "--process_id=2: must be in 0..1"),
        (Processes("auto", ADDRESS, 0, 0), "--num_processes=0: must be at least 1"),
        (Processes(join_timeout_s=0), "--join_timeout_s=0: must be at least 1"),
        (Processes(heartbeat_timeout_s=0), "--heartbeat_timeout_s=0: must be at least 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(processes, sentence):
    with pytest.raises(ValueError, match=sentence):
        distributed.start(processes)


@pytest.mark.parametrize("processes", [Processes("none"), Processes("auto", "[::1]:1234", 1, 0)])
def test_one_process_joins_nobody(processes):
    distributed.start(processes)
    assert jax.process_count() == 1


def aborted(status):
    return (
        "step 4: loss 1\nF1122 client.h:80] Terminating process because the JAX distributed "
        f"service detected fatal errors. absl::Status: {status}\n*** Check failure stack trace: @ 1"
    )


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (  # as jaxlib 0.10.2 writes them; before that, ids were ".../task:1"
            "DEADLINE_EXCEEDED: Barrier timed out. Id: [Init]Wait_for_all_tasks_to_register::0.\n"
            "# of tasks that reached the barrier: 2/4.\nThe first task at the barrier: 0. "
            "Some timed out task names:\n2\n11\n\n\nRPC: /xla.RegisterTask [type.x/y='\\n$[Init]']",
            "process 2, 11 did not join within 7 s",
        ),
        (
            "DEADLINE_EXCEEDED: Barrier timed out. Id: [Init]Wait_for_all_tasks_to_register::0. "
            "Some timed out task names:\n/job:jax_worker/replica:0/task:1\n",
            "process 1 did not join within 7 s",
        ),
        (
            "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.CoordinationService/RegisterTask",
            "could not join through process 0 within 7 s",
        ),
        (
            "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n"
            "The tasks have crashed. Check the task logs",
            "process 1 was lost",
        ),
        (
            "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was "
            "preempted",
            "process 0 was lost",
        ),
        (
            "INTERNAL: Shutdown barrier has failed.\nBarrier result: 'DEADLINE_EXCEEDED: Barrier "
            "timed out. Id: Shutdown::87259421237152339::0.\n# of tasks that reached the barrier: "
            "1/2.\nThe first task at the barrier: 1. Some timed out task names:\n0\n [type.x]",
            "process 1 ended .*, process 0 was still at work",
        ),
        ("INTERNAL: something\nnew", r"another process failed \(INTERNAL: something new\)"),
    ],
)
def test_the_abort_reasons_are_explained(status, sentence):
    assert re.match(sentence, abort_reasons.explain(aborted(status), 7))


ABORT = "\n\nFatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n  File x\n"


@pytest.mark.parametrize(
    "words",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  bad_alloc",
        "terminate called after throwing an instance of 'std::system_error'\n"
        "  what():  Resource temporarily unavailable",
        "LLVM ERROR: out of memory",
        "F0 threadpool.cc:1] Thread tf_pool creation via pthread_create() failed.",
        "OpenBLAS warning: Cannot allocate memory",
    ],
)
def test_an_abort_for_want_of_memory_is_no_lost_process(words):
    said = abort_reasons.explain(f"step 4: loss 1\n{words}{ABORT}", 7)
    assert re.match("the memory of this machine, or a limit .*does not suffice: ", said)
    assert words.splitlines()[-1].strip() in said


def test_another_abort_is_of_this_process():
    said = abort_reasons.explain(
        f"bad_alloc, long ago{chr(10) * 3}{'line' + chr(10)}" * 9 + ABORT, 7
    )
    assert said.startswith("the memory")
    said = abort_reasons.explain("bad_alloc, long ago\n" + 30 * "step: loss 1\n" + ABORT, 7)
    assert said == "a library ended this process (SIGABRT); the lines above say why"


def test_other_ends_need_no_explanation():
    assert abort_reasons.explain("contextdiff_jax: stopped on request at step 2, saved", 7) is None


def test_joining_needs_nothing_private_of_jax(monkeypatch):
    """Without it, who does not join has no name; joining is jax.distributed's all the same."""
    called = []
    monkeypatch.setattr(distributed, "jax_distributed", None)
    monkeypatch.setattr(distributed.abort_reasons, "attach", lambda _: None)
    monkeypatch.setattr(distributed.notices, "stderr", None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: called.append(given))
    distributed.start(Processes("explicit", ADDRESS, 2, 0))
    assert [given["coordinator_address"] for given in called] == [ADDRESS]


START = """
from contextdiff_jax.parallel import distributed
try:
    distributed.start(distributed.Processes())
except ValueError as error:
    print(error)
else:
    import jax
    print("alone:", jax.process_count())
"""


@pytest.mark.parametrize(
    ("pod", "sentence"),
    [
        ("0", "alone: 1"),
        ("3", "this is pod 3 of an indexed Job, but JAX found no cluster: install"),
    ],
)
def test_a_pod_that_finds_no_cluster_trains_alone_only_as_the_first(pod, sentence):
    done = subprocess.run(
        [sys.executable, "-c", START],
        capture_output=True,
        text=True,
        env=os.environ | {"JOB_COMPLETION_INDEX": pod},
    )
    assert done.stdout.splitlines()[-1].startswith(sentence), done.stderr


def test_arrays_go_to_a_mesh_and_back():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    tree = {"a": np.arange(8.0), "b": np.arange(16).reshape(8, 2)}
    placed = distributed.place(tree, batch_sharding(mesh))
    assert placed["b"].addressable_shards[0].data.shape == (2, 2)
    for name, array in tree.items():
        np.testing.assert_array_equal(distributed.to_host(placed[name]), array)


@pytest.mark.parametrize(
    ("shape", "process", "part"),
    [
        ((8, 1, 1), 1, (1, 2)),
        ((2, 2, 2), 0, (0, 2)),
        ((1, 1, 8), 1, (0, 1)),  # all devices hold the whole batch: both read all of it
    ],
)
def test_a_process_reads_what_its_devices_hold(shape, process, part):
    processes = np.repeat([0, 1], 4).reshape(shape[0] * shape[1], shape[2])
    assert distributed.part_of(processes, process) == part


def test_one_process_reads_it_all():
    assert distributed.batch_part(make_mesh(MeshConfig(2, 2, 2))) == (0, 1)


def test_parts_that_overlap_are_refused():
    processes = np.repeat([0, 1, 2], 2).reshape(2, 3)  # 0 holds half, 1 holds all
    with pytest.raises(ValueError, match=r"hold overlapping parts of a batch"):
        distributed.part_of(processes, 0)
