"""What a user can do with `hermes-launch`: every kind of task, lines, chat, sampling, launch files, JSON."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from launching import Launch, launch

from hermes_mp.cli.embedded import DEFAULT_TEXT

ROOT = Path(__file__).resolve().parents[2]
OBJECT_KEYS = {"schema", "model", "answers", "report", "error"}
REPORT_KEYS = {
    "passes", "tokens", "prefills", "first_read_s", "read_nbytes", "read_nbytes_per_pass", "read_nbytes_unused",
    "read_rate_nbytes_per_s", "read_mode", "stall_percent", "memory", "loaders", "loaders_restarted",
    "compute_restarted", "slots", "slot_nbytes", "residents", "pages", "forecast_s", "planned_by", "verified",
    "degraded", "remote_loaders", "boards",
}  # fmt: skip
MEMORY_KEYS = {
    "budget_nbytes", "peak_nbytes", "peak_by_process", "exact", "auto", "reserve_nbytes", "squeezes", "least_slots",
}  # fmt: skip
SAMPLING = {"temperature": 3.0, "top_k": 50, "top_p": 0.9}


def generated(directory: Path, prompt: str, count: int, **settings: Any) -> tuple[list[int], str]:
    """What transformers itself says."""
    import torch
    import transformers

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(1)
    made = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=count, pad_token_id=0,
        **settings or {"do_sample": False},
    )  # fmt: skip
    ids = made[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, tokenizer.decode(ids, skip_special_tokens=True)


def scores(directory: Path, task: str, given: str, **settings: Any) -> list[tuple[str, float]]:
    """What transformers' pipeline says."""
    import transformers

    found = transformers.pipeline(task, str(directory))(given, **settings)
    found = found[0] if isinstance(found[0], list) else found
    return [(one.get("label") or one["token_str"], pytest.approx(one["score"], abs=1e-6)) for one in found]


# --- tasks


def test_text_comes_token_by_token(models: Path, home: Path) -> None:
    arguments = ("--model", models / "big", "--prompt", "the ship", "--max-new-tokens", 40)
    with Launch(home, *arguments, "--loaders", 3, "--memory", "none") as run:
        run.wait_for(lambda run: run.out)
        loaders = [run.process(f"loader {number}") for number in range(3)]
        for pid in loaders:
            run.send(pid, signal.SIGSTOP)
        seen = run.out
        for pid in loaders:
            run.send(pid, signal.SIGCONT)
        ended = run.ended()
    ids, text = generated(models / "big", "the ship", 40)
    assert len(set(ids)) > 10, "a model that repeats itself shows nothing"
    assert ended.code == 0
    assert ended.out == text + "\n"
    assert len(seen) < len(text), "all of it came at once"


def test_generation_as_json(models: Path, home: Path) -> None:
    ended = launch(home, "--model", models / "gpt2", "--prompt", "the ship", "--max-new-tokens", 12, "--json")
    ids, text = generated(models / "gpt2", "the ship", 12)
    assert ended.code == 0
    assert set(ended.object) == OBJECT_KEYS
    assert (ended.object["schema"], ended.object["error"]) == (1, None)
    assert ended.object["model"] == str(models / "gpt2")
    assert ended.object["answers"] == [
        {"task": "text-generation", "text": text, "token_ids": ids, "tokens": 12, "prompt_tokens": 2,
         "stopped": "length"}
    ]  # fmt: skip
    report = ended.object["report"]
    assert set(report) == REPORT_KEYS
    assert set(report["memory"]) == MEMORY_KEYS
    assert report["passes"]["count"] == 12
    assert report["tokens"]["count"] == 11


def test_masks_are_filled_and_texts_without_one_embedded(models: Path, home: Path) -> None:
    ended = launch(home, "--model", models / "mlm", "--text", "the [MASK] sails", "--text", "the ship", "--json")
    masks, vector = ended.object["answers"]
    assert (masks["task"], vector["task"]) == ("fill-mask", "embedding")
    found = [(one["token"], one["score"]) for one in masks["masks"][0]["candidates"]]
    assert found == scores(models / "mlm", "fill-mask", "the [MASK] sails")
    assert vector["tokens"] == 4
    assert len(vector["embedding"]) == vector["dimensions"] == 32


def test_texts_are_classified_each_under_its_name(models: Path, home: Path) -> None:
    ended = launch(home, "--model", models / "classify", "--text", "the ship", "--text", "cold water")
    first, second = ended.out.split("\n\n")
    for text, shown in (("the ship", first), ("cold water", second)):
        expected = scores(models / "classify", "text-classification", text, top_k=3)
        name, *rows = shown.strip().splitlines()
        assert name == text
        assert [(row.split()[1], float(row.split()[0])) for row in rows] == [
            (label, pytest.approx(score.expected, abs=6e-4)) for label, score in expected
        ]


def test_a_base_checkpoint_embeds_token_ids_without_a_tokenizer(models: Path, home: Path) -> None:
    import torch
    import transformers

    folder = home.with_name("bert")
    shutil.copytree(models / "bert", folder, ignore=shutil.ignore_patterns("tokenizer*"))
    ended = launch(home, "--model", folder, "--token-ids", "5,6,7", "--token-embeddings", "--json")
    (answer,) = ended.object["answers"]
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        vectors = model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state[0]
    assert torch.equal(torch.tensor(answer["token_embeddings"]), vectors)
    assert answer["embedding"] == pytest.approx(vectors.mean(dim=0).tolist(), abs=1e-6)


def test_an_image_is_classified(models: Path, home: Path, tmp_path: Path) -> None:
    from tiny_models import picture

    image = picture(tmp_path / "cat.png")
    ended = launch(home, "--model", models / "vit", "--image", image, "--json")
    (answer,) = ended.object["answers"]
    found = [(one["label"], one["score"]) for one in answer["labels"]]
    assert found == scores(models / "vit", "image-classification", str(image), top_k=5)


def test_without_a_model_sentences_are_ranked(models: Path, home: Path) -> None:
    ended = launch(home, ROOT / "launch/single-board.toml", "--quiet")
    first, *rows = ended.out.splitlines()
    assert first == f"closest in meaning to: {DEFAULT_TEXT}"
    assert len(rows) == 12
    assert "violin" in rows[0]
    assert ended.err == "", "--quiet shows the answers only"


# --- lines, chat, sampling, launch files


def test_lines_are_requests_and_the_weights_stay_warm(models: Path, home: Path) -> None:
    trace = home.with_name("trace.json")
    arguments = ("--model", models / "gpt2", "--max-new-tokens", 5, "--loaders", 5, "--trace", trace, "--json")
    ended = launch(home, *arguments, stdin="the ship\n\ncold\nthe ship")
    one, two, three = ended.object["answers"]
    assert one == three
    assert (one["token_ids"], two["token_ids"]) == (
        generated(models / "gpt2", "the ship", 5)[0], generated(models / "gpt2", "cold", 5)[0],
    )  # fmt: skip
    reads = [event["name"] for event in json.loads(trace.read_text()) if event["name"].startswith("read unit")]
    assert len(reads) == len(set(reads)) == ended.object["report"]["residents"], "a unit was read twice"


def test_a_line_may_wait_for_the_answer_to_the_one_before(models: Path, home: Path) -> None:
    """A conversation on a pipe: the second line is written when the first is answered."""
    with Launch(home, "--model", models / "chat", "--max-new-tokens", 4, lines=True) as run:
        answers = []
        for text in ("cold", "water"):
            seen = len(run.out)
            run.write(text + "\n")
            run.wait_for(lambda run, seen=seen: run.out[seen:].endswith("\n"))
            answers.append(run.out[seen:-1])
        ended = run.ended()
    assert ended.code == 0
    chats = [generated(models / "chat", f"<user>{text}</user><bot>", 4)[1] for text in ("cold", "water")]
    assert answers == chats


def test_sampling_flags_mean_what_they_mean_to_transformers(models: Path, home: Path) -> None:
    flags = [part for name, value in SAMPLING.items() for part in ("--" + name.replace("_", "-"), value)]
    arguments = ("--model", models / "chat", "--raw", "--max-new-tokens", 16, "--seed", 1, *flags, "--json")
    ended = launch(home, *arguments, "--prompt", "cold", "--prompt", "cold")
    expected, _ = generated(models / "chat", "cold", 16, do_sample=True, **SAMPLING)
    assert expected != generated(models / "chat", "cold", 16)[0]
    assert [answer["token_ids"] for answer in ended.object["answers"]] == [expected, expected]


def test_a_launch_file_with_flags_that_beat_it(models: Path, home: Path) -> None:
    _, text = generated(models / "gpt2", "the ship", 24)
    stop = text[6:9]
    file = home.with_name("run.toml")
    shutil.copytree(models / "gpt2", home.with_name("model"))
    file.write_text('model = "./model"\nprompt = "the ship"\nmax-new-tokens = 1\nloaders = 2\n')
    ended = launch(home, file, "--max-new-tokens", 24, "--stop", stop, "--stop", "never", "--json")
    (answer,) = ended.object["answers"]
    assert answer["text"] == text[: text.find(stop)]
    assert answer["stopped"] == "stop string"
    assert answer["tokens"] < 24
    assert ended.object["report"]["loaders"] == 2
