"""python -m longgen.cli."""

from longgen.cli import main

main()
