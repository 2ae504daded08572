"""Measures the distance of the Jacobians along gradient paths from the identity.

    python bin/jacobian.py --gin_file=omniglot/jacobian_cpu.gin --output_dir=runs/jacobian

Leap assumes that they are the identity. The command writes a JSON file for each learning rate and
task, and prints the mean over the tasks. The same command continues a run that was stopped.
"""

import pathlib
import sys

import leap_tf_cli as cli


def main():
    gin_file = cli.paths_flag(
        "gin_file", "Configuration file; can be given several times.", required=True
    )
    gin_param = cli.gin_param_flag("Overrides the files: 'jacobian_precision.seed = 1'.")
    output_dir = cli.path_flag("output_dir", "Folder of the run.", required=True)
    data_dir = cli.data_dir_flag()

    def program(jacobian):
        from leap_tf.experiments import config
        from leap_tf.experiments.run_directory import RunDirectory

        run = RunDirectory(output_dir.value)
        run.claim(config.read_configuration(gin_file.value, gin_param.value))
        records = jacobian.configured_jacobian_precision(
            output_dir=run.path / "cells", data_dir=data_dir.value
        )
        print(jacobian.table(records))

    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # studies is not installed
    cli.start(program, __doc__, "studies.jacobian", parallel_tasks=1)  # paths run one by one


if __name__ == "__main__":
    main()
