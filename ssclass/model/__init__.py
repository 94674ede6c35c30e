"""The classifier: backbones, what they say of a photo, heads, training; from arrays to a Keras model."""
