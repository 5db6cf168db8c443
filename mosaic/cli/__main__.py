"""`python -m mosaic.cli`."""

from mosaic.cli import main

main()
