"""Leap for TensorFlow and Keras."""
