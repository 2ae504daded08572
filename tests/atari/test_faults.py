"""SIGKILL at any time, for games: see tests/faults."""

from tests.faults.kills import atari, attack


def test_a_killed_run_of_games_ends_bit_identical(tmp_path):
    def some(planned):
        return [kill for kill in planned if kill[0] in ("checkpoint", "final model")][-2:]

    fault = attack(atari(), tmp_path, kills=2, seed=2, shorten=some)
    assert fault.injected == 2
    assert not fault.failures
