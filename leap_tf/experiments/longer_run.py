"""A run that is given more meta-steps than it had: it goes on, and what it led to is kept.

A configuration that differs in nothing but a larger `meta_train.meta_steps` is of the same run made
longer. Its meta-steps are those that a run of that length would have made from the start.
What the shorter training led to moves to `after_<its meta-steps>_meta_steps/`, so that nothing in
the folder is of another initialization than the newest.
"""

import pathlib

from leap_tf.experiments.configuration_text import bindings_of, changed_bindings

_LENGTHS = ("meta_train.meta_steps", "atari_meta_train.meta_steps")
_MADE_OF_THE_INITIALIZATION = (
    "initialization.keras",
    "initialization.json",
    "learner.npz",
    "encoder",
    "evaluation.json",
    "evaluation_again.json",
    "evaluation",
    "export",
    "plots",
    "policies",
)


def length_before(present: str, config: str) -> int | None:
    """Returns the meta-steps of a run that another configuration makes longer, None if it does not.

    Args:
        present: the whole configuration of the run.
        config: that of which it is to be known whether it is of the same run, but longer.
    """
    changed = list(changed_bindings(present, config).items())
    if len(changed) != 1 or changed[0][0] not in _LENGTHS:
        return None
    name, now = changed[0]
    before = bindings_of(present).get(name, "")
    grows = before.isdigit() and now.isdigit() and int(now) > int(before)
    return int(before) if grows else None


def set_aside(folder: pathlib.Path, meta_steps: int) -> None:
    """Moves what was made of an initialization into a folder beside it.

    Args:
        folder: of the run.
        meta_steps: those that led to the initialization.
    """
    made = [folder / name for name in _MADE_OF_THE_INITIALIZATION]
    made = [path for path in made if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if not made:
        return
    name = f"after_{meta_steps}_meta_steps"
    earlier = len(list(folder.glob(f"{name}*")))
    aside = folder / (f"{name}_{earlier + 1}" if earlier else name)
    aside.mkdir()
    for path in made:
        path.rename(aside / path.name)
