"""A family of small games, "catch/0", "catch/1", …: move a paddle under a falling ball.

The number is the seed of a `Layout`: colours, sizes, speeds and whether left and right are swapped.
All games have the same three actions, and screens as large as those of Atari games. An agent needs
no emulator to play them, and learns them in seconds.
"""

from typing import NamedTuple

import numpy as np

from leap_tf.atari.environments import ScreenEnvironment, StepResult, layout_seed

CELLS = 7  # rows and columns


class Layout(NamedTuple):
    """What differs between two games of the family. Rows count from the top, in cells."""

    colours: np.ndarray  # [3, 3] uint8 RGB, of background, ball and paddle
    ball_width: int  # 1 or 2
    paddle_width: int  # 2 to 4
    paddle_row: int  # 9 to 11
    paddle_speed: int  # 1 or 2 columns a step
    start_rows: int  # balls start in the first 1 to 3 rows
    drift: int  # 0, or 1 if balls move sideways by a column a step
    swapped: bool  # whether the first action moves right, and the last one left


def draw_layout(seed: int) -> Layout:
    """Draws a layout: a dark background, and a ball and a paddle that are brighter."""
    random = np.random.default_rng(seed)
    colours = random.integers([[0], [96], [96]], [[64], [256], [256]], (3, 3))
    return Layout(
        colours.astype(np.uint8),
        ball_width=int(random.integers(1, 3)),
        paddle_width=int(random.integers(2, 4)),
        paddle_row=int(random.integers(5, 7)),
        paddle_speed=1,
        start_rows=int(random.integers(1, 3)),
        drift=int(random.integers(0, 2)),
        swapped=bool(random.integers(0, 2)),
    )


class CatchEnvironment(ScreenEnvironment):
    """Copies of a game of the family, stepped together.

    An episode is one ball. It falls by a row a step and bounces off the walls. The episode ends in
    the paddle's row, with reward 1 if the paddle touches the ball and 0 otherwise, so a score is
    1 or 0, and a mean score the share of balls that are caught.

    Args:
        game: "catch/" and the seed of the layout.
        copies: number of copies that run together.
        seed: seed of the first reset.
        image_size: height and width of the screens in pixels, a multiple of 12.

    Attributes:
        layout: the game's layout.

    Raises:
        ValueError: the name is another one, or a count or size is out of range.
    """

    def __init__(self, game: str, copies: int = 16, seed: int = 0, *, image_size: int = 84):
        self.layout = draw_layout(layout_seed(game))
        if image_size % CELLS:
            raise ValueError(f"image_size must be a multiple of {CELLS}, and is {image_size}.")
        super().__init__(
            copies, 3, seed, reward_clip=1.0, image_size=image_size, frame_skip=1
        )

    dense = False

    def start_games(self, seed: int | None) -> np.ndarray:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.balls = np.zeros((self.batch_size, 2), int)  # row, and column of the left end
        self.directions = np.zeros(self.batch_size, int)  # columns a step
        self.paddles = np.zeros(self.batch_size, int)  # column of the left end
        self._start(np.ones(self.batch_size, bool))
        return self._screens()

    def start_step(self, actions: np.ndarray) -> None:
        self._actions = actions

    def end_step(self) -> StepResult:
        layout, (rows, columns) = self.layout, self.balls.T
        starts = rows == layout.paddle_row
        moves = (self._actions - 1) * (-1 if layout.swapped else 1) * layout.paddle_speed
        self.paddles = np.clip(self.paddles + moves, 0, CELLS - layout.paddle_width)
        bounces = (columns + self.directions < 0) | (
            columns + self.directions > CELLS - layout.ball_width
        )
        self.directions = np.where(bounces, -self.directions, self.directions)
        self.balls = np.stack([rows + 1, columns + self.directions], axis=1)
        self._start(starts)
        rows, columns = self.balls.T
        touched = (columns < self.paddles + layout.paddle_width) & (
            columns + layout.ball_width > self.paddles
        )
        ended = rows == layout.paddle_row
        never = np.zeros_like(ended)
        return StepResult(self._screens(), ((ended | self.dense) & touched & ~starts) * 1.0, ended, never, ended)

    def _start(self, which: np.ndarray) -> None:
        """Starts the next episode in some copies, given as [copies] bool."""
        layout, draw = self.layout, self._random.integers
        columns = draw(0, CELLS - layout.ball_width + 1, self.batch_size)
        balls = np.stack([draw(0, layout.start_rows, self.batch_size), columns], axis=1)
        directions = layout.drift * (2 * draw(0, 2, self.batch_size) - 1)
        paddles = draw(0, CELLS - layout.paddle_width + 1, self.batch_size)
        self.balls = np.where(which[:, None], balls, self.balls)
        self.directions = np.where(which, directions, self.directions)
        self.paddles = np.where(which, paddles, self.paddles)

    def _screens(self) -> np.ndarray:
        layout, places = self.layout, np.arange(CELLS)

        def drawn(row, column, width):
            along = (places >= column[:, None]) & (places < column[:, None] + width)
            return (places == row[:, None])[:, :, None] & along[:, None]

        cells = np.where(drawn(*self.balls.T, layout.ball_width), 1, 0)
        paddle_row = np.full(self.batch_size, layout.paddle_row)
        cells = np.where(drawn(paddle_row, self.paddles, layout.paddle_width), 2, cells)
        scale = self._image_size // CELLS
        return layout.colours[cells].repeat(scale, axis=2).repeat(scale, axis=1)
