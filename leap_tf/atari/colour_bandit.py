"""A game without an emulator, whose best score is known: name the colour of the screen."""

import numpy as np

from leap_tf.atari.screen_environment import Played, ScreenEnvironment

_COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [255, 255, 0], [0, 255, 255]], np.uint8
)


class ColourBandit(ScreenEnvironment):
    """The reward is 1 if the action is the number of the colour shown, else 0.

    A random policy gets 1 / actions a step, the best one 1. Each screen's colour is drawn anew, an
    episode has `episode_steps` actions.

    Args:
        game: only a name, which takes the place of an Atari game's.
        copies: how many run at a time.
        seed: of the first reset.
        actions: how many colours there are, 2 to 6.
        episode_steps: steps of an episode.
        image_size: height and width of the screens.

    Raises:
        ValueError: there are not so many colours.
    """

    def __init__(
        self,
        game: str = "colour_bandit",
        copies: int = 16,
        seed: int = 0,
        actions: int = 4,
        episode_steps: int = 4,
        image_size: int = 84,
    ):
        if not 2 <= actions <= len(_COLOURS):
            raise ValueError(f"There are 2 to {len(_COLOURS)} colours, not {actions}.")
        super().__init__(copies, actions, seed, 1.0, image_size, frame_skip=1)
        self.game = game
        self._episode_steps = episode_steps
        self._random = np.random.default_rng(seed)
        self._choices = np.zeros(copies, np.int32)
        self._colour = self._choices
        self._age = 0

    def start_games(self, seed: int | None) -> np.ndarray:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._age = 0
        return self._draw()

    def start_step(self, actions: np.ndarray) -> None:
        self._choices = actions

    def end_step(self) -> Played:
        starts = self._age == self._episode_steps
        rewards = np.zeros(self.batch_size) if starts else (self._choices == self._colour) * 1.0
        self._age = 0 if starts else self._age + 1
        ended = np.full(self.batch_size, self._age == self._episode_steps)
        return Played(self._draw(), rewards, ended, np.zeros_like(ended), ended)

    def _draw(self):
        self._colour = self._random.integers(0, self.actions, self.batch_size)
        shape = (self.batch_size, self._image_size, self._image_size, 3)
        return np.ascontiguousarray(np.broadcast_to(_COLOURS[self._colour][:, None, None], shape))
