"""The bookkeeping of tasks: order, what is lost, what comes twice."""

import hypothesis
from hypothesis import strategies as st

from leap_tf.cluster.scheduler import TaskScheduler


def handed_out(board):
    return list(iter(board.next_task, None))


def test_tasks_go_out_in_order_and_no_further_than_allowed():
    board = TaskScheduler(5, ahead=3, attempts=2)
    assert handed_out(board) == [0, 1, 2]
    board.put(1, "b")
    assert list(board.take()) == handed_out(board) == []
    board.put(0, "a")
    assert list(board.take()) == ["a", "b"]
    assert handed_out(board) == [3, 4]
    for index in (2, 3, 4):
        board.put(index, "cde"[index - 2])
    assert list(board.take()) == ["c", "d", "e"]
    assert board.finished


def test_a_lost_task_goes_out_again_first_until_its_attempts_are_used_up():
    board = TaskScheduler(3, ahead=2, attempts=2)
    assert handed_out(board) == [0, 1]
    assert board.lose(0)
    assert handed_out(board) == [0]
    assert not board.lose(0)
    board.put(0, "given up")
    assert list(board.take()) == ["given up"]


def test_the_second_of_two_results_is_ignored():
    board = TaskScheduler(2, ahead=2, attempts=3)
    assert handed_out(board) == [0, 1]
    assert board.lose(0)  # its worker seemed dead
    assert board.put(0, "first")
    assert handed_out(board) == []  # so it need not be done again
    assert not board.put(0, "second")
    assert list(board.take()) == ["first"]
    assert not board.put(0, "third")
    assert board.lose(0)
    assert handed_out(board) == []
    assert not board.finished


@hypothesis.given(st.data(), st.integers(1, 12), st.integers(1, 5))
def test_whatever_happens_each_result_leaves_once_and_in_order(data, tasks, ahead):
    board, out, left = TaskScheduler(tasks, ahead, attempts=1000), [], []
    while not board.finished:
        out += handed_out(board)
        assert len(set(out)) <= ahead
        index = out.pop(data.draw(st.integers(0, len(out) - 1)))
        event = data.draw(st.sampled_from(["result", "result", "lost", "result twice"]))
        if event == "lost":
            assert board.lose(index)
        else:
            assert board.put(index, index)
        if event == "result twice":
            assert not board.put(index, "again")
        left += board.take()
    assert left == list(range(tasks))
