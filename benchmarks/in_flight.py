"""Tokens per second of four requests, one after the other and at once (`--in-flight 4`), on one board and on two.

`python benchmarks/in_flight.py` as root. Each board has a capped disk and a small window, as in boards_scale.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from on_bed import HEAD, LAUNCH, Boards, make_llama

LAYERS, REQUESTS = 16, 4


def add_words(model: Path) -> None:
    """A tokenizer of words `w1` to `w899`: several requests are several prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, **{f"w{one}": one for one in range(1, 900)}}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(model / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (model / "tokenizer_config.json").write_text(json.dumps(kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("bench-models/llama-16x14mb"))
    parser.add_argument("--disk", default="100M")
    parser.add_argument("--memory", default="345MiB", help="of each of two boards")
    parser.add_argument("--alone", default="400MiB", help="of one board")
    parser.add_argument("--tokens", type=int, default=6)
    arguments = parser.parse_args()
    model = make_llama(arguments.model, layers=LAYERS)
    add_words(model)
    prompts = [word for one in range(REQUESTS) for word in ("--prompt", f"w{7 * one + 1} w{one + 2} w5")]
    print(f"disk {arguments.disk}B/s each, 1 Gbit/s, 0.3 ms, CURVE; {LAYERS} layers of 13.6 MB, {REQUESTS} requests")
    said: list[list[int]] = []
    for count in (1, 2):
        memory = arguments.memory if count > 1 else arguments.alone
        for at_once in (1, REQUESTS):
            with Boards(count, model, arguments.memory, rate="1gbit", delay="0.3ms", disk=arguments.disk) as boards:
                words = [*LAUNCH, "--model", str(model), "--loaders", "1", "--context", "64", "--temperature", "0"]
                words += ["--json", "--verify", "never", "--memory", memory, "--max-new-tokens", str(arguments.tokens)]
                words += [*prompts, "--in-flight", str(at_once)]
                if count > 1:
                    words += ["--board", *boards.others, "--split", f"head:1,{boards.others[0]}:1," * (LAYERS // 2)]
                    words[-1] = words[-1].rstrip(",")
                found = json.loads(boards.call(HEAD, words))
            report, tokens = found["report"], [one["token_ids"] for one in found["answers"]]
            said = said or tokens
            pass_s = report["tokens"]["median_s"]
            print(
                f"boards {count}, in flight {at_once}: {pass_s:.2f} s per pass, {at_once / pass_s:.2f} tokens/s, "
                f"{report['read_nbytes'] / 1e6:.0f} MB read here, {'the same' if tokens == said else 'OTHER'} tokens",
                flush=True,
            )


if __name__ == "__main__":
    main()
