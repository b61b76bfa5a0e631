"""Seconds until the first token of a long prompt: at once and in chunks (`--prefill-chunk`), on one board and on two.

`python benchmarks/prefill_chunks.py` as root. All layers stay in memory and each board has one thread: what is
measured is computing. On two boards layers are dealt one by one in turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from on_bed import Boards, make_llama

LAYERS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("bench-models/llama-8x50mb"))
    parser.add_argument("--tokens", type=int, default=480, help="of the prompt")
    parser.add_argument("--chunks", type=int, nargs="+", default=[60, 120])
    parser.add_argument("--repeat", type=int, default=2)
    arguments = parser.parse_args()
    model = make_llama(arguments.model, layers=LAYERS, width=1024, inner=3072)
    ids = ",".join(str(5 + 7 * token % 900) for token in range(arguments.tokens))
    for count in (1, 2):
        with Boards(count, model, "2GiB", rate="1gbit", delay="0.3ms") as boards:
            words = ["--memory", "2GiB", "--context", "512", "--token-ids", ids, "--max-new-tokens", "3"]
            words += ["--threads", "1"]
            if count > 1:
                words += ["--split", ",".join(f"head:1,{boards.others[0]}:1" for _ in range(LAYERS // 2))]
            for _ in range(arguments.repeat):
                for chunk in (None, *arguments.chunks):
                    found = boards.launch(*words, *([] if chunk is None else ["--prefill-chunk", str(chunk)]))
                    first_s = found["report"]["prefills"]["median_s"]
                    how = "at once" if chunk is None else f"in chunks of {chunk}"
                    print(f"boards {count}, {how}: {first_s:.2f} s, {found['answers'][0]['token_ids']}", flush=True)


if __name__ == "__main__":
    main()
