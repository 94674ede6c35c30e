"""ssclass: a continuous retraining pipeline for a photo classifier.

Labelled photo batches in, a better model out, and only a better one. The flow is in :mod:`flows`;
this package holds the plain functions that it calls. Nothing heavy is imported here.
"""

__version__ = "0.1.0"
