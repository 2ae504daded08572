"""The recorded run of the colour bandit, see tests/same_bits.py."""

from leap_tf.training import TaskSpec
from tests import same_bits
from tests.atari.small import GAMES, trainer


def test_results_of_the_colour_bandit_are_as_recorded():
    made = trainer()
    made.fit(GAMES, 3, verbose=False)
    made.problem.sampler.use_list("bandits", GAMES.tasks)
    played = made.problem.evaluate(TaskSpec("bandits", 0, 0, seed=3, steps=5))
    found = {
        "weights": same_bits.digest([*made.model.get_weights(), played.losses, played.rewards]),
        "figures": [*same_bits.summary(made.model.get_weights()), float(played.losses.mean())],
    }
    same_bits.assert_as_recorded("colour bandit", found)
