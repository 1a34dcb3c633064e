"""Jobs in several processes."""

import operator
import os
import time

import pytest

from srlib import processes

pytestmark = pytest.mark.torch


def test_two_processes_share_the_jobs_and_neither_is_this_one(tmp_path):
    found = list(processes.side_by_side(_met, [(tmp_path, 0), (tmp_path, 1)], workers=2))
    assert len({pid for pid, _ in found} | {os.getpid()}) == 3
    assert {threads for _, threads in found} == {1}


def _met(folder, i):
    """Ends once the other job is under way, too."""
    import torch

    (folder / str(i)).touch()
    deadline = time.monotonic() + 60
    while not (folder / str(1 - i)).exists():
        assert time.monotonic() < deadline, "the other job never began"
        time.sleep(0.05)
    return os.getpid(), torch.get_num_threads()


def test_after_torch_has_run_threads_here():
    """What a fork must not wait for."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        total = _product(0)
        assert list(processes.side_by_side(_product, [(0,), (0,)], workers=2)) == pytest.approx([total] * 2, rel=1e-3)
    finally:
        torch.set_num_threads(before)


def _product(seed):
    import torch

    square = torch.rand(1500, 1500, generator=torch.Generator().manual_seed(seed))
    return float((square @ square).mean())


@pytest.mark.parametrize(("workers", "n_jobs", "gpu"), [(1, 3, False), (2, 1, False), (2, 3, True)])
def test_this_process_where_it_has_to_be(monkeypatch, workers, n_jobs, gpu):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert list(processes.side_by_side(os.getpid, [()] * n_jobs, workers)) == [os.getpid()] * n_jobs


def test_no_jobs_are_no_results():
    assert list(processes.side_by_side(os.getpid, [], workers=2)) == []


def test_an_error_in_a_process_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        list(processes.side_by_side(operator.truediv, [(1, 0), (1, 1)], workers=2))


def test_a_process_that_dies_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"one of 2 processes died.*set workers to 1"):
        list(processes.side_by_side(os._exit, [(9,), (9,)], workers=2))
