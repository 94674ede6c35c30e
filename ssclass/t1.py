"""The study's head T1, trained on moments instead of feature maps.

T1 is batch norm, global average pooling, dropout, dense 256 (ReLU), batch norm, dropout, dense. Its first batch norm
works on the feature map f, but is affine per channel, so the pooling can go first: for a batch of maps with spatial
mean m_i and spatial mean square s_i,

    mu = mean_i m_i        var = mean_i s_i - mu^2        pooled_i = gamma (m_i - mu) / sqrt(var + epsilon) + beta

is exactly what batch norm and pooling of the maps give. After training it is an ordinary batch norm on the
pooled features, with the map's moving mean and variance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ssclass.backbones import import_keras
from ssclass.params import TrainParams
from ssclass.schedules import EarlyStopping, learning_rates

HIDDEN = 256
BATCH = 32
MOMENTUM = 0.9  # Keras's 0.99 does not settle within the few hundred steps that a small data set gives
EPSILON = 1e-3


class T1Trainer:
    """One graph, traced once, for all folds: each training starts again from the same seeded weights."""

    def __init__(self, channels: int, classes: int, params: TrainParams) -> None:
        keras = import_keras()
        layers = keras.layers
        self.params = params
        self.channels = channels
        self.classes = classes
        seeds = range(params.seed * 4, params.seed * 4 + 4)  # of two kernels and two dropouts
        start = [keras.initializers.GlorotUniform(seed) for seed in seeds[:2]]
        self.norm = layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON)
        self.hidden = layers.Dense(HIDDEN, activation="relu", kernel_initializer=start[0])
        self.hidden_norm = layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON)
        # Two classes are one unit, as in the study: the score of the second against the first.
        self.score = layers.Dense(1 if classes == 2 else classes, kernel_initializer=start[1])
        self.dropout, self.hidden_dropout = (layers.Dropout(params.dropout, seed=seed) for seed in seeds[2:])
        learning = (self.norm, self.hidden, self.hidden_norm, self.score)
        for layer, width in zip(learning, (channels, channels, HIDDEN, HIDDEN), strict=True):
            layer.build((None, width))
        self._trainable = [variable for layer in learning for variable in layer.trainable_variables]
        self.optimizer = keras.optimizers.Adam(params.learning_rate)
        self.optimizer.build(self._trainable)
        self._weights = [variable for layer in learning for variable in layer.weights]
        self._state = [*self._weights, *self.optimizer.variables]
        self._state += [variable for layer in (self.dropout, self.hidden_dropout) for variable in layer.variables]
        self._start = [variable.numpy() for variable in self._state]
        self._epoch, self._infer = self._trace()

    def fit(
        self,
        moments: tuple[np.ndarray, ...],
        labels: np.ndarray,
        learn: np.ndarray,
        watch: np.ndarray,
        judge: np.ndarray,
        copies: tuple[np.ndarray, ...] = (),
    ) -> dict[str, list[float]]:
        """Train on the rows `learn`, guided by the rows `watch` where there are some, judged on the rows `judge`.

        Curves per epoch: learning_rate (at its end), loss, accuracy, val_loss and val_accuracy on `watch`, cv_loss and
        cv_accuracy on `judge`.

        `moments` are spatial mean and mean square, float32 [n, views, channels], `copies` the same of altered copies,
        [n, copies, views, channels]. Each epoch takes one view of each photo or of one of its copies, drawn anew. The
        last batch of an epoch is filled up from the first, so that no batch norm sees a batch of one.
        """
        import tensorflow as tf

        for variable, value in zip(self._state, self._start, strict=True):
            variable.assign(value)
        draw = np.random.default_rng(self.params.seed)
        batch = min(BATCH, len(learn))
        steps = -(-len(learn) // batch)
        arrays = [each[learn] for each in moments]
        for number, altered in enumerate(copies):
            more = altered[learn].reshape(len(learn), -1, *altered.shape[3:])
            arrays[number] = np.concatenate([arrays[number], more], axis=1)
        mean, square = (tf.constant(each) for each in arrays)
        own = tf.constant(labels[learn], tf.int32)
        curves: dict[str, list[float]] = {}
        stopping = EarlyStopping(self.params.early_stopping, self._weights)
        for epoch in range(self.params.epochs):
            rows = np.resize(draw.permutation(len(learn)), (steps, batch))
            views = draw.integers(arrays[0].shape[1], size=rows.shape)
            rates = learning_rates(self.params, epoch, steps, curves.get("val_loss", ()))
            order = tf.constant(np.stack([rows, views], axis=-1), tf.int32)
            loss, accuracy = self._epoch(mean, square, own, order, tf.constant(rates))
            now = {"learning_rate": float(rates[-1]), "loss": float(loss), "accuracy": float(accuracy)}
            for name, seen in (("val", watch), ("cv", judge)):
                if len(seen):
                    found = self.probabilities(moments[0][seen])
                    right = found[np.arange(len(seen)), labels[seen]]
                    now[f"{name}_loss"] = float(-np.log(np.maximum(right, 1e-12)).mean())
                    now[f"{name}_accuracy"] = float((found.argmax(axis=1) == labels[seen]).mean())
            for name, value in now.items():
                curves.setdefault(name, []).append(value)
            if len(watch) and stopping.ends(now["val_loss"]):
                break
        stopping.restore()
        return curves

    def probabilities(self, mean: np.ndarray) -> np.ndarray:
        """float64 [n, classes], the mean over views, for spatial means float32 [n, views, channels]."""
        return np.asarray(self._infer(mean), dtype=np.float64)

    def export(self, name: str) -> Any:
        """The trained head as a Keras model of standard layers; its input, `name`, is [n, views, channels]."""
        keras = import_keras()
        layers = keras.layers
        views = keras.Input((None, self.channels), name=name)
        norms = [layers.BatchNormalization(epsilon=EPSILON, name=each) for each in ("norm", "hidden_norm")]
        hidden = layers.Dense(HIDDEN, activation="relu", name="hidden")
        classify = layers.Dense(self.classes, activation="softmax", name="probabilities")
        each_view = classify(norms[1](hidden(norms[0](views))))
        model = keras.Model({name: views}, layers.GlobalAveragePooling1D(name="views")(each_view), name="head")
        for copy, layer in ((norms[0], self.norm), (hidden, self.hidden), (norms[1], self.hidden_norm)):
            copy.set_weights(layer.get_weights())
        classify.set_weights([self._with_first_class(value) for value in self.score.get_weights()])
        return model

    def pool(self, mean: Any, square: Any) -> Any:
        """Batch norm of a batch of maps, in training, then their pooling: [n, channels] of both moments to the same."""
        import tensorflow as tf

        mu = tf.reduce_mean(mean, axis=0)
        var = tf.maximum(tf.reduce_mean(square, axis=0) - mu**2, 0)
        for moving, now in ((self.norm.moving_mean, mu), (self.norm.moving_variance, var)):
            moving.assign(moving * MOMENTUM + now * (1 - MOMENTUM))
        return self.norm.gamma * (mean - mu) * tf.math.rsqrt(var + EPSILON) + self.norm.beta

    def _with_first_class(self, value: np.ndarray) -> np.ndarray:
        """sigmoid(z) is the second of softmax(0, z): a column of zeros makes the one unit two classes."""
        return np.concatenate([np.zeros_like(value), value], axis=-1) if self.classes == 2 else value

    def _trace(self) -> tuple[Any, Any]:
        """One epoch of training, and inference, as graphs for any number of photos and views."""
        import tensorflow as tf

        moments = tf.TensorSpec((None, None, self.channels), tf.float32)
        order = tf.TensorSpec((None, None, 2), tf.int32)
        rates = tf.TensorSpec((None,), tf.float32)

        def scores(pooled: Any, training: bool) -> Any:
            hidden = self.hidden(self.dropout(pooled, training=training))
            score = self.score(self.hidden_dropout(self.hidden_norm(hidden, training=training), training=training))
            return tf.concat([tf.zeros_like(score), score], axis=-1) if self.classes == 2 else score

        def epoch(mean: Any, square: Any, labels: Any, order: Any, rates: Any) -> Any:
            loss_sum, right = tf.constant(0.0), tf.constant(0.0)
            for number in tf.range(tf.shape(order)[0]):
                step = order[number]
                self.optimizer.learning_rate.assign(rates[number])
                own = tf.gather(labels, step[:, 0])
                with tf.GradientTape() as tape:
                    found = scores(self.pool(tf.gather_nd(mean, step), tf.gather_nd(square, step)), training=True)
                    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(own, found))
                self.optimizer.apply(tape.gradient(loss, self._trainable))
                loss_sum += loss
                right += tf.reduce_mean(tf.cast(tf.argmax(found, axis=-1, output_type=tf.int32) == own, tf.float32))
            steps = tf.cast(tf.shape(order)[0], tf.float32)
            return loss_sum / steps, right / steps

        def infer(mean: Any) -> Any:
            each_view = self.norm(tf.reshape(mean, (-1, self.channels)), training=False)
            found = tf.nn.softmax(scores(each_view, training=False))
            return tf.reduce_mean(tf.reshape(found, (-1, tf.shape(mean)[1], self.classes)), axis=1)

        labels = tf.TensorSpec((None,), tf.int32)
        return (
            tf.function(epoch, input_signature=[moments, moments, labels, order, rates]),
            tf.function(infer, input_signature=[moments]),
        )
