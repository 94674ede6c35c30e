"""The classifier: backbones, features, heads, training; from photos and labels to a Keras model."""
