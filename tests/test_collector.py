"""Python looks seldom for circles of objects in our processes, and not when they end."""

import subprocess
import sys

WATCHED = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # what is registered first runs last
from ssclass import __main__
import sys
sys.argv = ["ssclass", "--version"]
try:
    __main__.main()
except SystemExit:
    print(gc.get_threshold()[0] >= 10_000, gc.isenabled())
"""


def test_a_command_looks_seldom_for_circles_and_not_at_its_end() -> None:
    said = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split()[-3:] == ["True", "True", "True"]
    assert not said.stderr


def test_so_does_a_run_on_a_worker() -> None:
    """Prefect starts it by a command of its own: the first task that opens the workspace sees to it."""
    program = (
        "import gc, os, sys; os.environ['PREFECT__FLOW_RUN_ID'] = 'x'\n"
        "from tasks import retraining\n"
        "from ssclass.workspace import clones\n"
        "class Found: settings = None\n"
        "clones.workspace_at = lambda where: Found()\n"
        "retraining.quiet_libraries = lambda settings: None\n"
        "retraining.workspace_at('here')\n"
        "print(gc.get_threshold()[0])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert int(said.stdout) >= 10_000
