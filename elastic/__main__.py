"""`python -m elastic` is `elastic`."""

from elastic.cli import main

main()
