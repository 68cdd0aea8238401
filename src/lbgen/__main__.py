"""`python -m lbgen`, also for `accelerate launch -m lbgen align ...` and `torchrun -m lbgen align ...`."""

from lbgen.cli import main

main()
