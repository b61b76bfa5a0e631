"""A program that lives with `hermes_mp.load` in the soak campaign: a continuation of every line, sampled alike.

`python -m campaigns.soak_caller MODEL LOADERS`
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: an answer depends on the number of threads

import torch
from transformers import AutoTokenizer

from hermes_mp import load


def main() -> int:
    directory, loaders = sys.argv[1], int(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with load(directory, loaders=loaders, memory=None) as model:
        print("ready", flush=True)
        for line in sys.stdin:
            torch.manual_seed(5)
            inputs = tokenizer(line.strip(), return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=12, do_sample=True, pad_token_id=0)
            print(tokens[0].tolist(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
