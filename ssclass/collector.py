"""How often Python looks for objects that refer to each other in a circle.

By default it does after 700 new objects, and three times over all that there is when a process ends. A retrain imports
some 500,000 objects that stay: looking through them took 1.5 of 10.6 seconds of processors, and 1.5 more at its end.
"""

from __future__ import annotations

import atexit
import gc
from functools import cache

NEW = 20_000
"""New objects after which Python looks through the youngest; 50,000 were no faster."""


@cache
def collect_seldom() -> None:
    """Look after so many new objects, and not at the end of this process, whose memory goes as a whole."""
    gc.set_threshold(NEW)
    atexit.register(gc.freeze)
