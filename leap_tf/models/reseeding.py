"""Copies of one layer that do not start alike, even if its initializers have seeds."""

import keras
import numpy as np


def reseeded(
    initializer: keras.initializers.Initializer, *place: int
) -> keras.initializers.Initializer:
    """Returns an initializer that draws as the given one does, but other numbers at every place.

    Args:
        initializer: one without a seed draws anew anyway.
        *place: which copy it is for, not negative. The same place has the same numbers.
    """
    settings = initializer.get_config()
    if isinstance(settings.get("seed"), int):
        sequence = np.random.SeedSequence([settings["seed"], *place])
        settings = {**settings, "seed": int(sequence.generate_state(1)[0] >> 1)}
    return type(initializer).from_config(settings)
