"""A new series arrives: adapts the learned initialization to it and saves an ordinary Keras model.

python adapt.py runs/forecasting/initialization.keras
"""

import sys

import keras
from forecasting import QuantileLoss, forecasting_task

import leap_tf

task = forecasting_task(number=100, seed=0)
before = keras.saving.load_model(sys.argv[1], compile=False)
before.compile(loss=QuantileLoss())
adapted = leap_tf.adapt(sys.argv[1], task, keras.optimizers.SGD(0.1), QuantileLoss(), steps=30)
print(f"{task.name}: loss {before.evaluate(*task.test, verbose=0):.3f} at the initialization")
print(f"{task.name}: loss {adapted.evaluate(*task.test, verbose=0):.3f} after 30 steps")
adapted.save("adapted.keras")
