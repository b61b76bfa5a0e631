"""Tokens per second of one board, two and four, decoding one request: each with a capped disk and a small window.

`python benchmarks/boards_scale.py` as root. Layers are dealt in rounds and, beside that, in contiguous stages; then
with so much memory that four boards together hold the model. All boards share this machine's cores, so the model is
one whose computing is a small part of its reading.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from on_bed import Boards, Failed, make_llama

LAYERS = 32


def split(boards: int, rounds: int) -> str:
    """`head:1,board2:1,...` in so many rounds."""
    names = ["head", *(f"board{number}" for number in range(2, boards + 1))]
    done, found = 0, []
    for number in range(rounds):
        share = LAYERS // boards * (number + 1) // rounds - done
        done += share
        found += [f"{name}:{share}" for name in names]
    return ",".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("bench-models/llama-32x14mb"))
    parser.add_argument("--disk", default="100M")
    parser.add_argument("--memory", default="330MiB", help="of each of several boards: two slots beside the rest")
    parser.add_argument("--alone", default="380MiB", help="of one board, which needs more to start with")
    parser.add_argument("--room", default="460MiB", help="with which four boards together hold the model")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--boards", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    model = make_llama(arguments.model)
    print(f"disk {arguments.disk}B/s each, 1 Gbit/s, 0.3 ms, CURVE; {LAYERS} layers of 13.6 MB, float32")
    alone, tokens = 0.0, list[int]()
    for count in arguments.boards:
        memory = arguments.memory
        cases = [
            (memory, split(count, LAYERS // count), "in rounds of one layer"),
            (memory, split(count, LAYERS // count // 2), "in rounds of two"),
            (memory, split(count, 1), "contiguous"),
        ]
        if count == 1:  # such a board, by its own plan with what it needs to start; and with what the others have
            cases = [(arguments.alone, "", "by its own plan"), (memory, f"head:{LAYERS}", "two slots, as the others")]
        cases += [(arguments.room, split(count, 1), "with all layers in memory")] if count == 4 else []
        for budget, layers, name in cases:
            there = max(count, 1 + bool(layers))
            with Boards(there, model, budget, rate="1gbit", delay="0.3ms", disk=arguments.disk) as boards:
                words = ["--memory", budget, "--max-new-tokens", str(arguments.tokens)]
                try:
                    found = boards.launch(*words, *(["--split", layers] if layers else []))
                except Failed as error:
                    print(f"{count} boards, {name}: {error}")
                    continue
            seconds = found["report"]["tokens"]["median_s"]
            alone = seconds if count == 1 else alone or seconds
            tokens = tokens or found["answers"][0]["token_ids"]
            same = "the same tokens" if found["answers"][0]["token_ids"] == tokens else "OTHER TOKENS"
            print(f"{count} boards, {name:26} {budget}  {seconds:.3f} s per token  {alone / seconds:.2f}x  {same}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
