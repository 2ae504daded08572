"""A family of small games, "catch/0", "catch/1", …: move a paddle under a falling ball.

The number is the seed of a `Layout`: colours, sizes, movements, and whether left and right are
swapped. No emulator is needed, and agents learn a game in seconds.
"""

from typing import NamedTuple

import keras
import numpy as np

from leap_tf.atari.actor_critic import PixelConvolution
from leap_tf.atari.environments import ScreenEnvironment, StepResult, layout_seed

CELLS = 7  # rows and columns


class Layout(NamedTuple):
    """The properties of a game of the family. Sizes and rows are in cells; row 0 is at the top."""

    colours: np.ndarray  # [3, 3] uint8 RGB of background, ball and paddle
    ball_width: int  # 1 or 2
    paddle_width: int  # 2 or 3
    paddle_row: int  # 5 or 6
    start_rows: int  # 1 or 2: a ball starts in one of the first rows
    drift: int  # 0, or 1 if balls also move sideways by a column a step
    swapped: bool  # whether action 0 moves right and action 2 left, and not the other way round


def draw_layout(seed: int) -> Layout:
    """Draws a layout with a dark background, and with a ball and a paddle that are brighter."""
    random = np.random.default_rng(seed)
    colours = random.integers([[0], [96], [96]], [[64], [256], [256]], (3, 3))

    def draw(least: int) -> int:
        return int(random.integers(least, least + 2))

    return Layout(
        colours.astype(np.uint8),
        ball_width=draw(1),
        paddle_width=draw(2),
        paddle_row=draw(5),
        start_rows=draw(1),
        drift=draw(0),
        swapped=bool(draw(0)),
    )


class CatchEnvironment(ScreenEnvironment):
    """Copies of a game of the family, stepped together.

    An episode is one ball. It falls by a row a step, and bounces off the walls. In the paddle's row
    the episode ends, with reward 1 if the paddle touches the ball and 0 otherwise, so a mean score
    is the share of balls that are caught. Actions 0, 1, 2 move the paddle by −1, 0, 1 columns.

    Args:
        game: "catch/" and the seed of the layout.
        copies: number of copies that run together.
        seed: seed of the first reset.
        image_size: height and width of the screens in pixels, a multiple of 7.

    Attributes:
        layout: the game's layout.
        balls: [copies, 2] row, and column of the left end.
        directions: [copies] columns that a ball moves in a step.
        paddles: [copies] column of the left end.

    Raises:
        ValueError: the name is another one, or a count or size is out of range.
    """

    def __init__(self, game: str, copies: int = 32, seed: int = 0, *, image_size: int = 84):
        self.layout = draw_layout(layout_seed(game))
        if image_size % CELLS:
            raise ValueError(f"image_size must be a multiple of {CELLS}. Received: {image_size}.")
        super().__init__(copies, 3, seed, reward_clip=1.0, image_size=image_size, frame_skip=1)

    def start_games(self, seed: int | None) -> np.ndarray:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.balls, self.directions, self.paddles = self._starts()
        return self._screens()

    def play(self, actions: np.ndarray) -> StepResult:
        layout, (rows, columns) = self.layout, self.balls.T
        starts = rows == layout.paddle_row
        moves = (1 - actions) if layout.swapped else (actions - 1)
        paddles = np.clip(self.paddles + moves, 0, CELLS - layout.paddle_width)
        ahead = columns + self.directions
        hits_wall = (ahead < 0) | (ahead > CELLS - layout.ball_width)
        directions = np.where(hits_wall, -self.directions, self.directions)
        balls = np.stack([rows + 1, columns + directions], axis=1)
        new_balls, new_directions, new_paddles = self._starts()
        self.balls = np.where(starts[:, None], new_balls, balls)
        self.directions = np.where(starts, new_directions, directions)
        self.paddles = np.where(starts, new_paddles, paddles)
        rows, columns = self.balls.T
        ended = rows == layout.paddle_row
        touched = (columns < self.paddles + layout.paddle_width) & (
            self.paddles < columns + layout.ball_width
        )
        rewards, never = (ended & touched) * 1.0, np.zeros_like(ended)
        return StepResult(self._screens(), rewards, ended, never, ended)

    def _starts(self):
        """Draws balls, directions and paddles at the start of an episode, for all copies."""
        layout, draw, copies = self.layout, self._random.integers, self.batch_size
        rows = draw(0, layout.start_rows, copies)
        columns = draw(0, CELLS - layout.ball_width + 1, copies)
        sides = 2 * draw(0, 2, copies) - 1
        paddles = draw(0, CELLS - layout.paddle_width + 1, copies)
        return np.stack([rows, columns], axis=1), layout.drift * sides, paddles

    def _screens(self) -> np.ndarray:
        layout, places = self.layout, np.arange(CELLS)

        def drawn(rows, columns, width):
            offsets = places - columns[:, None]
            along = (offsets >= 0) & (offsets < width)
            return (places == rows[:, None])[:, :, None] & along[:, None]

        paddle = drawn(
            np.full(self.batch_size, layout.paddle_row), self.paddles, layout.paddle_width
        )
        ball = drawn(self.balls[:, 0], self.balls[:, 1], layout.ball_width)
        cells = np.where(ball, 1, np.where(paddle, 2, 0))
        scale = self._image_size // CELLS
        return layout.colours[cells].repeat(scale, axis=2).repeat(scale, axis=1)


def catch_encoder(image_size: int = 84, filters: int = 16, units: int = 32) -> keras.Model:
    """Builds a small encoder for the family: a convolution of each cell, and a dense layer.

    Returns a built model from screens to features [batch, units].
    """
    size = image_size // CELLS
    screens = keras.Input((image_size, image_size, 3))
    features = PixelConvolution(filters, size, size, activation="relu", name="conv")(screens)
    features = keras.layers.Flatten(name="flatten")(features)
    features = keras.layers.Dense(units, activation="relu", name="dense")(features)
    return keras.Model(screens, features, name="encoder")
