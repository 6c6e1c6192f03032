"""`python -m finetale`."""

from finetale.cli import main

main()
