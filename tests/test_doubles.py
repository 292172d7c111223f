"""The thread double itself: it must fail where MPI may fail, and say why."""

from __future__ import annotations

import time

import numpy as np
import pytest

from distloop.comm.mpi import MPI
from tests.doubles import DeadlockError, TruncationError, run_ranks


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_results_come_in_order_of_rank():
    assert run_ranks(3, lambda comm: (comm.rank, comm.size)) == [(0, 3), (1, 3), (2, 3)]


def test_messages_keep_their_order_whatever_else_is_under_way():
    def function(comm):
        if comm.rank == 0:
            requests = [comm.Isend(numbers(value), 1, tag=value % 2) for value in range(10)]
            for request in requests:
                request.Wait()
            return None
        inboxes = [np.empty(1, np.float32) for _ in range(10)]
        requests = [comm.Irecv(inbox, 0, tag=tag) for tag in (1, 0) for inbox in inboxes[tag::2]]
        for request in reversed(requests):
            request.Wait()
        return [float(inbox[0]) for inbox in inboxes]

    assert run_ranks(2, function)[1] == list(range(10))


def test_a_cycle_of_sends_is_a_deadlock_found_at_once():
    def cycle(comm):
        comm.Send(numbers(1), (comm.rank + 1) % comm.size)
        comm.Recv(np.empty(1, np.float32), (comm.rank - 1) % comm.size)

    began = time.monotonic()
    with pytest.raises(DeadlockError) as caught:
        run_ranks(3, cycle)
    assert time.monotonic() - began < 5
    assert "rank 1: waits in Send from 1 to 2 (tag 0, 4 bytes, world), at test_doubles.py" in str(caught.value)
    assert "in cycle: comm.Send" in str(caught.value)


def test_a_rank_that_ended_leaves_the_others_in_a_deadlock():
    with pytest.raises(DeadlockError, match=r"rank 0: has ended\n  rank 1: waits in Barrier"):
        run_ranks(2, lambda comm: comm.Barrier() if comm.rank else None)


def test_sendrecv_goes_round_even_to_oneself():
    def function(comm):
        arrived = np.empty(1, np.float32)
        comm.Sendrecv(
            numbers(comm.rank), dest=(comm.rank + 1) % comm.size, recvbuf=arrived, source=(comm.rank - 1) % comm.size
        )
        return float(arrived[0])

    assert run_ranks(1, function) == [0]
    assert run_ranks(4, function) == [3, 0, 1, 2]


def test_a_receive_buffer_changes_in_wait_only():
    def function(comm):
        if comm.rank == 0:
            return comm.Send(numbers(7), 1)
        arrived = numbers(0)
        request = comm.Irecv(arrived, 0)
        comm_has_it = request._post
        while not comm_has_it.done:
            time.sleep(0.001)
        before = float(arrived[0])
        request.Wait()
        return before, float(arrived[0])

    assert run_ranks(2, function)[1] == (0, 7)


def test_a_send_buffer_must_not_change_before_wait():
    def function(comm):
        buffer = numbers(1)
        if comm.rank == 0:
            request = comm.Isend(buffer, 1)
            buffer[0] = 2
            request.Wait()
        else:
            comm.Recv(buffer, 0)

    with pytest.raises(AssertionError, match="changed before its Wait"):
        run_ranks(2, function)


def test_a_message_longer_than_its_buffer_is_an_error():
    def function(comm):
        if comm.rank == 0:
            comm.Send(numbers(1, 2), 1)
        else:
            comm.Recv(np.empty(1, np.float32), 0)

    with pytest.raises(TruncationError, match=r"rank 1, Recv on 1 from 0 .*: 8 bytes arrived"):
        run_ranks(2, function)


def test_a_message_that_nobody_receives_is_an_error():
    with pytest.raises(AssertionError, match="never matched: Send from 0 to 1"):
        run_ranks(2, lambda comm: comm.Isend(numbers(1), 1) if comm.rank == 0 else None)


def test_the_first_exception_comes_out_and_stops_the_others():
    def function(comm):
        if comm.rank == 1:
            raise ValueError("no")
        comm.Barrier()

    with pytest.raises(ValueError, match="no") as caught:
        run_ranks(3, function)
    assert caught.value.__notes__ == ["on rank 1 of 3"]


def test_a_rank_that_never_ends_runs_out_of_time():
    def function(comm):
        if comm.rank == 0:
            time.sleep(0.6)
        comm.Barrier()

    with pytest.raises(TimeoutError, match=r"rank 0: computes.*\n  rank 1: waits in Barrier"):
        run_ranks(2, function, timeout=0.3)


def test_different_collectives_at_the_same_time_are_an_error():
    with pytest.raises(AssertionError, match="different collectives"):
        run_ranks(2, lambda comm: comm.Barrier() if comm.rank else comm.allgather(1))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_allreduce(world_size):
    def function(comm):
        flat, total = numbers(comm.rank, 1), np.empty(2, np.float32)
        comm.Allreduce(flat, total)
        comm.Allreduce(MPI.IN_PLACE, [flat, 2, MPI.FLOAT], op=MPI.MAX)
        return total.tolist(), flat.tolist()

    expected = ([sum(range(world_size)), world_size], [world_size - 1, 1])
    assert run_ranks(world_size, function) == [expected] * world_size


def test_reduce_scatter_and_allgatherv_with_uneven_and_empty_parts():
    def function(comm):
        counts = [2, 0, 1]
        own = np.empty(counts[comm.rank], np.float32)
        comm.Reduce_scatter(numbers(1, 2, 3), own, counts)
        whole = np.zeros(4, np.float32)
        comm.Allgatherv(own, [whole, counts, [0, 2, 3], MPI.FLOAT])
        again = numbers(9, 9, 9)
        comm.Allgatherv([own, own.size, MPI.FLOAT], [again, (counts, [0, 2, 2])])
        return own.tolist(), whole.tolist(), again.tolist()

    whole, again = [3, 6, 0, 9], [3, 6, 9]
    assert run_ranks(3, function) == [([3, 6], whole, again), ([], whole, again), ([9], whole, again)]


def test_bcast_and_allgather_of_arrays_and_objects():
    def function(comm):
        flat = numbers(comm.rank, comm.rank)
        comm.Bcast(flat, root=1)
        gathered = np.empty(comm.size, np.float32)
        comm.Allgather(numbers(comm.rank), gathered)
        return flat.tolist(), gathered.tolist(), comm.bcast(comm.rank, root=1), comm.allgather(comm.rank)

    assert run_ranks(2, function) == [([1, 1], [0, 1], 1, [0, 1])] * 2


def test_empty_messages_travel_too():
    def function(comm):
        nothing = np.empty(0, np.float32)
        comm.Sendrecv(nothing, 1 - comm.rank, recvbuf=nothing, source=1 - comm.rank)
        comm.Bcast(nothing)

    run_ranks(2, function)


def test_communicators_do_not_hear_each_other_and_control_is_not_counted():
    def function(comm):
        peer, inbox, inbox_control = 1 - comm.rank, numbers(0), numbers(0)
        requests = [comm.Irecv(inbox, peer), comm.control.Irecv(inbox_control, peer)]
        requests += [comm.control.Isend(numbers(2), peer), comm.Isend(numbers(1), peer)]
        for request in requests:
            request.Wait()
        return float(inbox[0]), float(inbox_control[0]), comm.sent.bytes, comm.sent.messages

    assert run_ranks(2, function) == [(1, 2, 4, 1)] * 2


def test_split_makes_groups():
    def function(comm):
        half = comm.Split(comm.rank % 2, key=-comm.rank)
        total = np.empty(1, np.float32)
        half.Allreduce(numbers(comm.rank), total)
        return half.rank, half.size, float(total[0])

    assert run_ranks(3, function) == [(1, 2, 2), (0, 1, 1), (0, 2, 2)]


def test_what_mpi_refuses_is_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        run_ranks(1, lambda comm: comm.Isend(np.zeros((2, 2))[:, 0], 0))
    with pytest.raises(ValueError, match="read-only"):
        run_ranks(1, lambda comm: comm.Irecv(np.frombuffer(b"abcd", np.uint8), 0))
    with pytest.raises(AssertionError, match="no such rank"):
        run_ranks(1, lambda comm: comm.Isend(numbers(1), 1))
