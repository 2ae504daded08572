"""Learning curves with bands, and a strip of screens of an agent at play."""

import pathlib
from collections.abc import Mapping, Sequence

import keras
import matplotlib.figure
import numpy as np
import PIL.Image

from leap_tf.atari.evaluation import GameEvaluation
from leap_tf.atari.screen_environment import ScreenEnvironment
from leap_tf.atari.tables import reward_band
from leap_tf.experiments.plots import standard_error

_COLOURS = ("#1b6ca8", "#b5651d", "#888888", "#4f7942")


def plot_learning_curves(
    games: Mapping[str, Mapping[str, Sequence[GameEvaluation]]], path: pathlib.Path
) -> None:
    """Draws clipped reward, and below it the score of games that ended, over frames.

    Lines are means over seeds, bands one standard error.

    Args:
        games: from a game to, for each initialization, the agents that started from it.
        path: where the PNG goes.
    """
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(games), 6.4), layout="constrained")
    axes = figure.subplots(2, len(games), squeeze=False)
    for (game, evaluations), reward, score in zip(games.items(), *axes):
        for colour, (name, agents) in zip(_COLOURS, evaluations.items()):
            band = reward_band(agents)
            _draw(reward, band["frames"], band["mean"], band["standard_error"], colour, name)
            _draw_scores(score, agents, colour, name)
        reward.set(title=game, ylabel="clipped reward per 1000 steps")
        score.set(xlabel="frames", ylabel="score")
        for each in (reward, score):
            each.spines[["top", "right"]].set_visible(False)
            each.grid(axis="y", alpha=0.3)
            each.locator_params(axis="x", nbins=5)
    axes[0, 0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def save_frame_strip(
    agent: keras.Model,
    environment: ScreenEnvironment,
    path: pathlib.Path,
    screens: int = 8,
    steps_between: int = 25,
) -> float:
    """Lets an agent play and saves screens of the first copy, side by side.

    Args:
        agent: of `actor_critic`; its actions are drawn from its policy.
        environment: is reset first.
        path: where the PNG goes.
        screens: how many.
        steps_between: steps from one to the next.

    Returns:
        The raw reward of the first copy meanwhile.
    """
    random = np.random.default_rng(0)
    time_step = environment.reset()
    strip, total = [], 0.0
    for step in range((screens - 1) * steps_between + 1):
        if step % steps_between == 0:
            strip.append(np.asarray(time_step.observation[0]))
        logits = agent(time_step.observation.astype(np.float32))[0].numpy()
        time_step = environment.step(np.argmax(logits + random.gumbel(size=logits.shape), axis=-1))
        total += float(environment.raw_reward[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.concatenate(strip, axis=1)).save(path)
    return total


def _draw(axes, frames, mean, error, colour, name):
    mean, error = np.asarray(mean), np.asarray(error)
    axes.plot(frames, mean, color=colour, label=name)
    axes.fill_between(frames, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def _draw_scores(axes, agents, colour, name, points=10):
    curves = np.stack([agent.score_curve(points) for agent in agents])
    known = ~np.all(np.isnan(curves), axis=0)
    if not np.any(known):
        return
    frames = agents[0].frames * (np.arange(points) + 0.5) / points
    ended = [part[~np.isnan(part)] for part in curves[:, known].T]
    means = [part.mean() for part in ended]
    errors = [standard_error(part) or 0.0 for part in ended]
    _draw(axes, frames[known], means, errors, colour, name)
