"""Many copies of one Atari game, on ale-py's C++ vector environment.

It emulates, resizes and skips frames on threads of its own, without Python.
"""

import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from leap_tf.atari.games import refuse_unknown_game
from leap_tf.atari.screen_environment import Played, ScreenEnvironment, check_numbers


class AtariEnvironment(ScreenEnvironment):
    """Copies of an Atari game, stepped together.

    Observations are RGB screens, uint8 [copies, image_size, image_size, 3]. Everything random
    (no-op starts, sticky actions) follows from the seed, whatever the number of threads. A reset
    after `seed()` loads the game anew, which takes about 90 ms of one core for each copy; a reset
    without takes 5.

    Args:
        game: as the emulator names it, such as "ms_pacman".
        copies: how many run at a time.
        seed: of the first reset; copy i has seed + i.
        emulator_threads: C++ threads that emulate.
        frame_skip: frames an action is repeated for; one step is so many frames.
        max_pool: whether the screen is the maximum of the last two frames.
        no_op_max: an episode starts with fewer than so many frames of doing nothing, as many as
            the seed says. Where the game starts on "fire", the last of them is that.
        fire_on_reset: whether "fire" is pressed where a game starts so.
        reward_clip: rewards are clipped to ± this.
        sticky_actions: probability that the action before is repeated instead.
        life_loss_ends: whether the loss of a life ends an episode for the agent. The game goes
            on, and so does its score.
        max_frames: frames after which a game is cut off, which is no end: the discount stays 1.
        all_actions: whether all 18 actions are offered, and not only those the game knows.
        image_size: height and width of the screens.

    Raises:
        ValueError: there is no such game, or a number makes no sense. The emulator would hang or
            end the process for some.
    """

    def __init__(
        self,
        game: str,
        copies: int = 32,
        seed: int = 0,
        emulator_threads: int = 1,
        frame_skip: int = 4,
        max_pool: bool = True,
        no_op_max: int = 30,
        fire_on_reset: bool = True,
        reward_clip: float = 5.0,
        sticky_actions: float = 0.0,
        life_loss_ends: bool = False,
        max_frames: int = 108_000,
        all_actions: bool = False,
        image_size: int = 84,
    ):
        refuse_unknown_game(game)
        check_numbers(copies, reward_clip, image_size, frame_skip)
        for name, number, least in (
            ("emulator_threads", emulator_threads, 1),
            ("no_op_max", no_op_max, 0),
            ("max_frames", max_frames, 1),
        ):
            if not least <= number < 2**31:
                raise ValueError(f"{name} must be {least} to 2³¹ − 1, and is {number}.")
        if not 0.0 <= sticky_actions <= 1.0:
            raise ValueError(f"sticky_actions is a probability, 0 to 1, and is {sticky_actions}.")
        self.game = game
        self._life_loss_ends = life_loss_ends
        self._emulator = AtariVectorEnv(
            game,
            copies,
            batch_size=0,  # a step waits for all copies
            num_threads=emulator_threads,
            thread_affinity_offset=-1,
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=sticky_actions,
            full_action_space=all_actions,
            continuous=False,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            img_height=image_size,
            img_width=image_size,
            grayscale=False,
            stack_num=1,
            frameskip=frame_skip,
            maxpool=max_pool,
            noop_max=no_op_max,
            episodic_life=False,  # it would start the whole game anew on the loss of a life
            life_loss_info=life_loss_ends,
            reward_clipping=False,  # it only knows ± 1
            use_fire_reset=fire_on_reset,
        )
        actions = len(self._emulator.ale.get_action_set())
        super().__init__(copies, actions, seed, reward_clip, image_size, frame_skip)

    def start_games(self, seed: int | None) -> np.ndarray:
        screens, _ = self._emulator.reset(seed=seed)
        return screens[:, 0]

    def start_step(self, actions: np.ndarray) -> None:
        self._emulator.send(actions)

    def end_step(self) -> Played:
        screens, rewards, ended, cut_off, info = self._emulator.recv()
        no_lives = info["lives"] == 0 if self._life_loss_ends else True
        return Played(screens[:, 0], rewards, ended, cut_off, cut_off | (ended & no_lives))
