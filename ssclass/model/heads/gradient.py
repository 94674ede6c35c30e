"""Gradient descent on cached features: the trainer of the study's heads, T1, T2.0 and T2.1.

    T1    batch norm, global average pooling, dropout, dense 256 (ReLU), batch norm, dropout, dense
    T2.0  batch norm, dropout, flatten, dense
    T2.1  batch norm, global average pooling, dropout, dense

T1 and T2.1 are trained on moments instead of feature maps: their first batch norm works on the map f, but is affine
per channel, so the pooling can go first. For a batch of maps with spatial mean m_i and spatial mean square s_i,

    mu = mean_i m_i        var = mean_i s_i - mu^2        pooled_i = gamma (m_i - mu) / sqrt(var + epsilon) + beta

is exactly what batch norm and pooling of the maps give. After training it is an ordinary batch norm on the
pooled features, with the map's moving mean and variance. T2.0 has a weight for each place of the map, so it needs the
map itself; with f in the place of m_i the same formula is its batch norm.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ssclass.model.backbones import import_keras
from ssclass.model.heads.base import accuracy, log_loss
from ssclass.model.schedules import EarlyStopping, learning_rates
from ssclass.params import TrainParams

BATCH = 32  # as in the study
LARGEST, STEPS = 128, 5  # of a head with a hidden layer: batches, and how many an epoch has at least
MOMENTUM = 0.9  # Keras's 0.99 does not settle within the few hundred steps that a small data set gives
EPSILON = 1e-3


class DenseTrainer:
    """Trains one head on several folds with one graph, each time from the same seeded weights.

    `shape` is that of a photo's view: (channels,) of its spatial mean and mean square, or (h, w, channels) of its map.
    `hidden`: units of a dense layer with batch norm before the last one; 0: there is none.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int, classes: int, params: TrainParams) -> None:
        keras = import_keras()
        layers = keras.layers
        self.params = params
        self.shape = shape
        self.classes = classes
        self.maps = len(shape) > 1
        self.inputs = int(np.prod(shape))
        seeds = range(params.seed * 4, params.seed * 4 + 4)  # of two kernels and two dropouts
        start = [keras.initializers.GlorotUniform(seed) for seed in seeds[:2]]
        self.norm = layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON)
        self.norm.build((None, *shape))
        self.dropout, self.hidden_dropout = (layers.Dropout(params.dropout, seed=seed) for seed in seeds[2:])
        self.hidden: Any = None
        self.hidden_norm: Any = None
        if hidden:
            self.hidden = layers.Dense(hidden, activation="relu", kernel_initializer=start[0])
            self.hidden.build((None, self.inputs))
            self.hidden_norm = layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON)
            self.hidden_norm.build((None, hidden))
        # Two classes are one unit, as in the study: the score of the second against the first.
        self.score = layers.Dense(1 if classes == 2 else classes, kernel_initializer=start[1])
        self.score.build((None, hidden or self.inputs))
        trained = [layer for layer in (self.norm, self.hidden, self.hidden_norm, self.score) if layer]
        self._trainable = [variable for layer in trained for variable in layer.trainable_variables]
        self.optimizer = keras.optimizers.Adam(params.learning_rate)
        self.optimizer.build(self._trainable)
        self._weights = [variable for layer in trained for variable in layer.weights]
        self._state = [*self._weights, *self.optimizer.variables]
        self._state += [variable for layer in (self.dropout, self.hidden_dropout) for variable in layer.variables]
        self._start = [variable.numpy() for variable in self._state]
        self._epoch, self._infer = self._trace()

    def fit(
        self,
        arrays: tuple[np.ndarray, ...],
        labels: np.ndarray,
        train: np.ndarray,
        validation: np.ndarray,
        test: np.ndarray,
        augmented: tuple[np.ndarray, ...] = (),
    ) -> dict[str, list[float]]:
        """Fit to the rows `train`, with the rows `validation` to stop by where there are some; returns curves.

        Curves per epoch: learning_rate (at its end), loss, accuracy, val_loss and val_accuracy on `validation`,
        cv_loss and cv_accuracy on `test`.

        `arrays` are spatial mean and mean square, float32 [n, views, channels], or the map alone, float16 [n, views,
        h, w, channels]; `augmented` are those arrays of altered copies, [n, copies, views, …]. Each epoch takes one
        view of each photo or of one of its copies, drawn anew. The last batch of an epoch is filled up from the first,
        so that no batch norm sees a batch of one.
        """
        import tensorflow as tf

        for variable, value in zip(self._state, self._start, strict=True):
            variable.assign(value)
        draw = np.random.default_rng(self.params.seed)
        batch = _batch_size(len(train)) if self.hidden else min(BATCH, len(train))
        steps = -(-len(train) // batch)
        views_of = [array[train] for array in arrays]
        for number, copies in enumerate(augmented):
            more = copies[train].reshape(len(train), -1, *copies.shape[3:])
            views_of[number] = np.concatenate([views_of[number], more], axis=1)
        data = tuple(tf.constant(array) for array in views_of)
        own = tf.constant(labels[train], tf.int32)
        curves: dict[str, list[float]] = {}
        stopping = EarlyStopping(self.params.early_stopping, self._weights)
        for epoch in range(self.params.epochs):
            rows = np.resize(draw.permutation(len(train)), (steps, batch))
            views = draw.integers(data[0].shape[1], size=rows.shape)
            rates = learning_rates(self.params, epoch, steps, curves.get("val_loss", ()))
            order = tf.constant(np.stack([rows, views], axis=-1), tf.int32)
            loss, hits = self._epoch(data, own, order, tf.constant(rates))
            now = {"learning_rate": float(rates[-1]), "loss": float(loss), "accuracy": float(hits)}
            for name, rest in (("val", validation), ("cv", test)):
                if len(rest):
                    found = self.probabilities(arrays[0][rest])
                    now[f"{name}_loss"] = log_loss(found, labels[rest])
                    now[f"{name}_accuracy"] = accuracy(found, labels[rest])
            for name, value in now.items():
                curves.setdefault(name, []).append(value)
            if len(validation) and stopping.ends(now["val_loss"]):
                break
        stopping.restore()
        return curves

    def probabilities(self, first: np.ndarray) -> np.ndarray:
        """Probabilities float64 [n, classes], the mean over views, by the first of the arrays, [n, views, *shape]."""
        return np.asarray(self._infer(first), dtype=np.float64)

    def export(self, name: str) -> Any:
        """The fitted head as a Keras model of standard layers; its input, `name`, is [n, views, *shape]."""
        keras = import_keras()
        layers = keras.layers
        views = keras.Input((None, *self.shape), name=name, dtype=self._dtype)
        norm = layers.BatchNormalization(epsilon=EPSILON, name="norm")
        scores = norm(views)
        fitted = [(norm, self.norm)]
        if self.maps:
            scores = layers.Reshape((-1, self.inputs), name="flatten")(scores)
        if self.hidden:
            hidden = layers.Dense(self.hidden.units, activation="relu", name="hidden")
            hidden_norm = layers.BatchNormalization(epsilon=EPSILON, name="hidden_norm")
            scores = hidden_norm(hidden(scores))
            fitted += [(hidden, self.hidden), (hidden_norm, self.hidden_norm)]
        classify = layers.Dense(self.classes, activation="softmax", name="probabilities")
        output = layers.GlobalAveragePooling1D(name="views")(classify(scores))
        model = keras.Model({name: views}, output, name="head")
        for layer, trained in fitted:
            layer.set_weights(trained.get_weights())
        classify.set_weights([self._with_first_class(value) for value in self.score.get_weights()])
        return model

    def normalise(self, mean: Any, square: Any) -> Any:
        """Batch norm as in training, then pooling, of a batch of maps that are given by their moments.

        `mean` and `square` are [n, channels], and so is the result. Given maps themselves ([n, h, w, channels], and
        their squares), it is the batch norm alone. The moving statistics are updated.
        """
        import tensorflow as tf

        axes = list(range(len(self.shape)))
        mu = tf.reduce_mean(mean, axis=axes)
        var = tf.maximum(tf.reduce_mean(square, axis=axes) - mu**2, 0)
        for moving, now in ((self.norm.moving_mean, mu), (self.norm.moving_variance, var)):
            moving.assign(moving * MOMENTUM + now * (1 - MOMENTUM))
        return self.norm.gamma * (mean - mu) * tf.math.rsqrt(var + EPSILON) + self.norm.beta

    @property
    def _dtype(self) -> str:
        """The dtype of the arrays: a map is kept in half the bytes."""
        return "float16" if self.maps else "float32"

    def _with_first_class(self, value: np.ndarray) -> np.ndarray:
        """The weights of the last layer with a column of zeros before the one unit that two classes have.

        sigmoid(z) is the second of softmax(0, z).
        """
        return np.concatenate([np.zeros_like(value), value], axis=-1) if self.classes == 2 else value

    def _trace(self) -> tuple[Any, Any]:
        """An epoch of training and a prediction as graphs, for any number of photos and views."""
        import tensorflow as tf

        array = tf.TensorSpec((None, None, *self.shape), self._dtype)
        order = tf.TensorSpec((None, None, 2), tf.int32)
        rates = tf.TensorSpec((None,), tf.float32)

        def scores(normal: Any, training: bool) -> Any:
            flat = self.dropout(tf.reshape(normal, (-1, self.inputs)), training=training)
            if self.hidden:
                flat = self.hidden_norm(self.hidden(flat), training=training)
                flat = self.hidden_dropout(flat, training=training)
            score = self.score(flat)
            return tf.concat([tf.zeros_like(score), score], axis=-1) if self.classes == 2 else score

        def batch(arrays: Any, step: Any) -> tuple[Any, Any]:
            first, *second = (tf.cast(tf.gather_nd(array, step), tf.float32) for array in arrays)
            return first, first**2 if self.maps else second[0]

        def epoch(arrays: Any, labels: Any, order: Any, rates: Any) -> Any:
            loss_sum, hits = tf.constant(0.0), tf.constant(0.0)
            for number in tf.range(tf.shape(order)[0]):
                step = order[number]
                self.optimizer.learning_rate.assign(rates[number])
                own = tf.gather(labels, step[:, 0])
                with tf.GradientTape() as tape:
                    found = scores(self.normalise(*batch(arrays, step)), training=True)
                    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(own, found))
                self.optimizer.apply(tape.gradient(loss, self._trainable))
                loss_sum += loss
                hits += tf.reduce_mean(tf.cast(tf.argmax(found, axis=-1, output_type=tf.int32) == own, tf.float32))
            steps = tf.cast(tf.shape(order)[0], tf.float32)
            return loss_sum / steps, hits / steps

        def infer(first: Any) -> Any:
            normal = self.norm(tf.reshape(tf.cast(first, tf.float32), (-1, *self.shape)), training=False)
            found = tf.nn.softmax(scores(normal, training=False))
            return tf.reduce_mean(tf.reshape(found, (-1, tf.shape(first)[1], self.classes)), axis=1)

        labels = tf.TensorSpec((None,), tf.int32)
        return (
            tf.function(epoch, input_signature=[(array,) if self.maps else (array, array), labels, order, rates]),
            tf.function(infer, input_signature=[array]),
        )


def _batch_size(photos: int) -> int:
    """How many of so many training photos are in a batch of a head with a hidden layer, `BATCH` to `LARGEST`.

    A step costs little more for four times the photos. On the study's photos, T1 three times in batches of 32 and of
    128: accuracy .920 and .925, log loss .234 and .227, 22 and 13 s of a processor (`linear` 11 s, on a busy machine).
    """
    return min(photos, max(BATCH, min(LARGEST, photos // STEPS)))
