"""A program that uses `hermes_mp.load`: `caller.py MODEL` prints tokens; an error is one line and its exit code."""

import sys

import torch

import hermes_mp
from hermes_mp.errors import HermesError

try:
    model = hermes_mp.load(sys.argv[1], loaders=2, memory=None)
    tokens = model.generate(torch.tensor([[3, 14, 15]]), max_new_tokens=8, do_sample=False)
    print(tokens.tolist())
except HermesError as error:
    print(f"caller: {error.line()}", file=sys.stderr)
    sys.exit(error.exit_code)
