"""``python -m ssclass``."""

from ssclass.cli import main

main()
