"""``python -m ssclass``."""

import sys
from pathlib import Path

# `python -m` puts the current folder first: a person's tasks.py or flows/ there would be taken for ours. A checkout's
# own folder stays, as ssclass itself comes from it. Children get the same by PYTHONSAFEPATH.
if not sys.flags.safe_path and sys.path and Path(sys.path[0] or ".").resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from ssclass.cli import main

main()
