"""`python -m raylla`."""

from raylla.cli import main

main()
