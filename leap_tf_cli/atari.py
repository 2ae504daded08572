"""The programs for Atari games: leap-atari-train, -evaluate, -compare and -screen."""

import os

from absl import flags

import leap_tf_cli as cli

flags.disclaim_key_flags()

_GIN_FILE = "Configuration file, or the name of one that is shipped, such as atari_cpu.gin."


def train() -> None:
    """Meta-trains the encoder of agents on Atari games.

        leap-atari-train --gin_file=atari_cpu.gin --output_dir=runs/atari

    The same command resumes an interrupted run. With --pool=ray, tasks run on a Ray cluster: see
    docs/cluster.md.
    """
    gin_file = cli.paths_flag("gin_file", _GIN_FILE, required=True)
    gin_param = cli.gin_param_flag(
        "Binding that overrides the files, such as 'atari_study.seed = 1'."
    )
    output_dir = cli.path_flag("output_dir", "The run's folder.", required=True)
    pool = cli.pool_flags()

    def program(commands):
        choice = commands.PoolChoice(**pool())
        commands.train(gin_file.value, gin_param.value, output_dir.value, choice)

    _start(program, train.__doc__)


def evaluate() -> None:
    """Evaluates a finished run: agents from its encoder, from fresh ones, and random play.

        leap-atari-evaluate --output_dir=runs/atari --gin_param='atari_evaluate.seeds = 3'

    The same command resumes an interrupted evaluation.
    """
    gin_param = cli.gin_param_flag("Binding of the evaluation, such as 'atari_evaluate.seeds = 3'.")
    output_dir = cli.path_flag("output_dir", "The run's folder.", required=True)
    _start(lambda commands: commands.evaluate(gin_param.value, output_dir.value), evaluate.__doc__)


def compare() -> None:
    """Compares evaluated runs of several methods or seeds: table, figures, learning curves.

    leap-atari-compare --output_dir=runs/compared \\
        --run=Leap=runs/leap_0 --run=Leap=runs/leap_1 --run=Reptile=runs/reptile_0
    """
    run = flags.DEFINE_multi_string(
        "run",
        None,
        "An evaluated run, as method=folder; runs of one method are pooled.",
        required=True,
    )
    output_dir = cli.path_flag("output_dir", "Folder for the comparison.", required=True)
    _start(lambda commands: commands.compare(run.value, output_dir.value), compare.__doc__)


def screen() -> None:
    """Trains single agents from fresh encoders and compares them with random play.

    leap-atari-screen --gin_file=atari_cpu.gin --game=crazy_climber --seed=101
    """
    gin_file = cli.paths_flag("gin_file", _GIN_FILE, required=True)
    gin_param = cli.gin_param_flag(
        "Binding that overrides the files, such as 'AtariEnvironment.copies = 8'."
    )
    game = flags.DEFINE_multi_string("game", None, "Name of a game.", required=True)
    seed = flags.DEFINE_multi_integer("seed", None, "Seed of encoder and task run.", required=True)
    updates = flags.DEFINE_integer("updates", None, "Updates; the trainer's number by default.")
    output = cli.path_flag("output", "File of JSON lines to append the figures to.")

    def program(commands):
        commands.screen(
            gin_file.value,
            gin_param.value,
            game.value,
            seed.value,
            updates=updates.value,
            output=output.value,
        )

    _start(program, screen.__doc__)


def _start(program, description):
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TensorFlow reads it when it is imported
    cli.start(program, description, "leap_tf.atari.commands", parallel_tasks=0)
