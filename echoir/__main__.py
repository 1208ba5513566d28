"""``python -m echoir``, which is also what torchrun starts."""

from echoir.cli import main

main()
