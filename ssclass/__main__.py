"""``python -m ssclass``, and the command `ssclass`."""

import signal
import sys
from pathlib import Path


def main() -> None:
    """Import the command line and run it; Ctrl-C before it runs ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as behind nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # `python -m` puts the current folder first: a person's tasks.py or flows/ there would be taken for ours. A
    # checkout's own folder stays, as ssclass itself comes from it. Children get the same by PYTHONSAFEPATH.
    here = Path(__file__).resolve().parents[1]
    if __name__ == "__main__" and not sys.flags.safe_path and sys.path and Path(sys.path[0] or ".").resolve() != here:
        del sys.path[0]
    from ssclass.collector import collect_seldom

    collect_seldom()
    from ssclass.cli import main as run

    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
