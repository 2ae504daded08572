"""Tests of `TaskScheduler`: order and lost tasks."""

import hypothesis
from hypothesis import strategies as st

from leap_tf.cluster.ray_pool import TaskScheduler


def handed_out(scheduler):
    return list(iter(scheduler.next_task, None))


def test_tasks_go_out_in_order_and_no_further_than_allowed():
    scheduler = TaskScheduler(5, ahead=3, attempts=2)
    assert handed_out(scheduler) == [0, 1, 2]
    scheduler.put(1, "b")
    assert list(scheduler.take()) == handed_out(scheduler) == []
    scheduler.put(0, "a")
    assert list(scheduler.take()) == ["a", "b"]
    assert handed_out(scheduler) == [3, 4]
    for index in (2, 3, 4):
        scheduler.put(index, "cde"[index - 2])
    assert list(scheduler.take()) == ["c", "d", "e"]
    assert scheduler.finished


def test_a_lost_task_goes_out_again_first_until_its_attempts_are_used_up():
    scheduler = TaskScheduler(3, ahead=2, attempts=2)
    assert handed_out(scheduler) == [0, 1]
    assert scheduler.lose(0)
    assert handed_out(scheduler) == [0]
    assert not scheduler.lose(0)
    scheduler.put(0, "given up")
    assert list(scheduler.take()) == ["given up"]


@hypothesis.given(st.data(), st.integers(1, 12), st.integers(1, 5))
def test_whatever_happens_each_result_leaves_once_and_in_order(data, tasks, ahead):
    scheduler, out, left = TaskScheduler(tasks, ahead, attempts=1000), [], []
    while not scheduler.finished:
        out += handed_out(scheduler)
        assert len(set(out)) <= ahead
        index = out.pop(data.draw(st.integers(0, len(out) - 1)))
        if data.draw(st.sampled_from(["result", "result", "lost"])) == "lost":
            assert scheduler.lose(index)
        else:
            scheduler.put(index, index)
        left += scheduler.take()
    assert left == list(range(tasks))
