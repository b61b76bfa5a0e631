"""Every shape of decoder over two, three and four boards, real processes, beside plain transformers.

CI runs every shape on every number of boards with one deal each, so that every deal has its turn; the others are slow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import launch
from serving import Serving
from tiny_models import DECODERS, decoder, gpt2

SPLITS = {
    2: {"contiguous": "head:4,b1:4", "uneven": "head:1,b1:7", "rounds": "head:1,b1:1,head:2,b1:2,head:1,b1:1"},
    3: {
        "contiguous": "head:2,b1:3,b2:3", "uneven": "b1:5,b2:1,head:2",
        "rounds": "head:1,b1:1,b2:1,head:1,b1:1,b2:1,head:1,b1:1",
    },
    4: {
        "contiguous": "head:2,b1:2,b2:2,b3:2", "uneven": "head:1,b1:1,b2:5,b3:1",
        "rounds": "head:1,b1:1,b2:1,b3:1,head:1,b1:1,b2:1,b3:1",
    },
}  # fmt: skip
SHAPES = ("gpt2", *DECODERS)
PROMPT = [5, 6, 7, 250, 31]
NEW = 16
USUAL = {
    (shape, count): list(SPLITS[count])[(number + count) % 3]
    for number, shape in enumerate(SHAPES)
    for count in SPLITS
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    gpt2(folder / "gpt2", layers=8, tokenizer=False)
    for name in DECODERS:
        decoder(folder / name, name)
    return folder


@pytest.fixture(scope="module", params=list(SPLITS))
def boards(request: pytest.FixtureRequest, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(tmp_path_factory.mktemp("boards"), shapes, request.param - 1) as serving:
        yield serving


@pytest.fixture(scope="module")
def plain(shapes: Path) -> dict[str, list[int]]:
    """What plain transformers says, by shape."""
    import torch
    import transformers

    said = {}
    for name in SHAPES:
        model = transformers.AutoModelForCausalLM.from_pretrained(shapes / name).eval()
        asked = torch.tensor([PROMPT])
        with torch.no_grad():
            tokens = model.generate(
                asked, attention_mask=torch.ones_like(asked), max_new_tokens=NEW, do_sample=False, pad_token_id=0,
                eos_token_id=None,
            )  # fmt: skip
        said[name] = tokens[0, len(PROMPT) :].tolist()
        assert len(set(said[name])) > 3, said  # one that says the same over and over proves nothing
    return said


def check(shape: str, deal: str, boards: Serving, shapes: Path, plain: dict[str, list[int]], home: Path) -> None:
    split = SPLITS[len(boards.names) + 1][deal]
    asked = ("--token-ids", ",".join(map(str, PROMPT)), "--max-new-tokens", NEW, "--temperature", 0, "--json")
    words = ("--model", shapes / shape, "--loaders", 1, "--memory", "none", "--boards", boards.file, "--split", split)
    ended = launch(home, *words, *asked)
    boards.await_rest()
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["answers"][0]["token_ids"] == plain[shape], split
    layers = {one["board"]: one["layers"] for one in found["report"]["boards"]}
    assert sorted(layer for own in layers.values() for layer in own) == list(range(8))
    assert all(layers.values()), layers


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tokens_of_plain_transformers(
    shape: str, boards: Serving, shapes: Path, plain: dict[str, list[int]], home: Path
) -> None:
    check(shape, USUAL[shape, len(boards.names) + 1], boards, shapes, plain, home)


@pytest.mark.slow
@pytest.mark.parametrize("deal", list(SPLITS[2]))
@pytest.mark.parametrize("shape", SHAPES)
def test_in_every_deal(
    shape: str, deal: str, boards: Serving, shapes: Path, plain: dict[str, list[int]], home: Path
) -> None:
    check(shape, deal, boards, shapes, plain, home)
