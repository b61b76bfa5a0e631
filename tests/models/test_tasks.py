"""Every task on tiny random models with tokenizers made here, against transformers' own pipelines and generate."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from hermes_mp.cli.embedded import embedded_model, embedded_requests
from hermes_mp.errors import BadImage, CallTooLarge, CheckpointBroken, ContextTooLong, UnsupportedCheckpoint, WrongInput
from hermes_mp.models.tasks.choice import choose_task
from hermes_mp.models.tasks.task import Answer, open_task

WORDS = ["the", "ship", "sails", "over", "cold", "water", "while", "a", "small", "crab", "counts", "grey", "stones"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}</user>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def word_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIAL, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names).save_pretrained(
        directory
    )


def byte_tokenizer(directory: Path, template: str | None = None) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = template
    fast.save_pretrained(directory)


def save(model_class: str, config: Any, directory: Path, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).eval()
    model.save_pretrained(directory)
    return model


def bert(name: str, directory: Path, **settings: Any) -> Any:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        vocab_size=len(SPECIAL + WORDS), max_position_embeddings=48, **settings,
    )  # fmt: skip
    word_tokenizer(directory)
    return save(name, config, directory)


def gpt2(directory: Path, template: str | None = None, **generation: Any) -> Any:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=300, bos_token_id=0, eos_token_id=0,
        initializer_range=0.4, tie_word_embeddings=False,  # or it gives the same token for ever
    )  # fmt: skip
    byte_tokenizer(directory, template)
    model = save("GPT2LMHeadModel", config, directory)
    model.generation_config = transformers.GenerationConfig(bos_token_id=0, eos_token_id=0, **generation)
    return model


def vit(directory: Path, name: str = "ViTForImageClassification", **settings: Any) -> Any:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8,
        num_labels=7, id2label={at: f"animal {at}" for at in range(7)}, **settings,
    )  # fmt: skip
    processor = {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "do_normalize": True, "do_resize": True}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return save(name, config, directory)


def ask(model: Any, directory: Path, request: dict[str, Any], **options: Any) -> tuple[Answer, list[str]]:
    said: list[str] = []
    return open_task(model, directory, options).answer(request, said.append, True), said


def plain_greedy(model: Any, directory: Path, text: str, tokens: int) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(text, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return made[0, inputs["input_ids"].shape[1] :].tolist()


# --- generation


def test_greedy_is_what_generate_gives(tmp_path: Path) -> None:
    model = gpt2(tmp_path)
    answer, said = ask(model, tmp_path, {"prompt": "the ship"}, max_new_tokens=24)
    expected = plain_greedy(model, tmp_path, "the ship", 24)
    assert len(set(expected)) > 4, "a model that repeats itself shows nothing"
    assert answer["token_ids"] == expected
    assert answer["text"] == "".join(said)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert answer["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert (answer["tokens"], answer["stopped"]) == (len(expected), "length" if len(expected) == 24 else "end")
    assert len(said) > 3, "the text must come in pieces"


@pytest.mark.parametrize("said", [0, 1, 7, 23, 24])
def test_an_answer_that_is_gone_on_with(tmp_path: Path, said: int) -> None:
    """Whatever was said of it: the same tokens (here in float32), and all of the text, but only the others' ids."""
    model = gpt2(tmp_path, min_new_tokens=9)
    whole, _ = ask(model, tmp_path, {"prompt": "the ship"}, max_new_tokens=24)
    texts, ids = [], []
    task = open_task(model, tmp_path, {"max_new_tokens": 24, "replay": "fast"})
    before = whole["token_ids"][:said]

    def say(text: str, token_ids: Sequence[int] = ()) -> None:
        texts.append(text)
        ids.extend(token_ids)

    assert task.answer({"prompt": "the ship", "said": before}, say, True) == whole
    assert "".join(texts) == whole["text"]
    assert before + ids == whole["token_ids"]


def test_an_answer_that_had_ended_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stop string, by the token that ends answers, or by its length; the model is not asked again."""
    model = gpt2(tmp_path)
    whole, _ = ask(model, tmp_path, {"prompt": "the ship"}, max_new_tokens=12)
    cut, _ = ask(model, tmp_path, {"prompt": "the ship"}, max_new_tokens=12, stop=(whole["text"][6:9],))
    monkeypatch.setattr(model, "generate", None)
    for answer, stop in ((whole, ()), (cut, (whole["text"][6:9],))):
        request = {"prompt": "the ship", "said": answer["token_ids"]}
        assert ask(model, tmp_path, request, max_new_tokens=12, stop=stop)[0] == answer
    ended, _ = ask(model, tmp_path, {"prompt": "the ship", "said": [5, 7, 0]}, max_new_tokens=12)
    assert (ended["token_ids"], ended["stopped"]) == ([5, 7, 0], "end")


def test_a_stop_string_ends_the_answer_before_it_and_saves_passes(tmp_path: Path) -> None:
    model = gpt2(tmp_path)
    whole, _ = ask(model, tmp_path, {"prompt": "the ship"}, max_new_tokens=24)
    stop = whole["text"][6:9]
    answer, said = ask(model, tmp_path, {"prompt": "the ship"}, max_new_tokens=24, stop=("never", stop))
    assert answer["text"] == "".join(said) == whole["text"][: whole["text"].find(stop)]
    assert answer["stopped"] == "stop string"
    assert answer["tokens"] < whole["tokens"]


def test_beams_are_cut_at_the_stop_string_too(tmp_path: Path) -> None:
    model = gpt2(tmp_path, num_beams=3)
    whole, said = ask(model, tmp_path, {"prompt": "the ship"}, max_new_tokens=16)
    assert "".join(said) == whole["text"]
    stop = whole["text"][4:7]
    cut, _ = ask(model, tmp_path, {"prompt": "the ship"}, max_new_tokens=16, stop=(stop,))
    assert cut["text"] == whole["text"][: whole["text"].find(stop)]


def test_a_seed_makes_sampling_repeatable(tmp_path: Path) -> None:
    model = gpt2(tmp_path)
    options = {"temperature": 3.0, "max_new_tokens": 16}
    made = [ask(model, tmp_path, {"prompt": "cold"}, seed=seed, **options)[0]["token_ids"] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_the_generation_config_decides_what_is_left_open(tmp_path: Path) -> None:
    model = gpt2(tmp_path, do_sample=True, temperature=3.0)
    greedy = plain_greedy(model, tmp_path, "cold", 32)
    assert ask(model, tmp_path, {"prompt": "cold"}, seed=1, max_new_tokens=32)[0]["token_ids"] != greedy
    assert ask(model, tmp_path, {"prompt": "cold"}, temperature=0, max_new_tokens=32)[0]["token_ids"] == greedy
    assert ask(model, tmp_path, {"prompt": "cold"}, top_k=1, max_new_tokens=32)[0]["token_ids"] == greedy


def test_the_chat_template_is_used_unless_raw(tmp_path: Path) -> None:
    model = gpt2(tmp_path, TEMPLATE)
    chat = "<user>cold</user><bot>"
    expected = plain_greedy(model, tmp_path, chat, 8)
    assert ask(model, tmp_path, {"prompt": "cold"}, max_new_tokens=8)[0]["token_ids"] == expected
    assert ask(model, tmp_path, {"line": "cold"}, max_new_tokens=8)[0]["token_ids"] == expected
    raw = ask(model, tmp_path, {"prompt": "cold"}, max_new_tokens=8, raw=True)[0]
    assert raw["token_ids"] == plain_greedy(model, tmp_path, "cold", 8)
    assert raw["prompt_tokens"] < len(chat)


def test_without_a_tokenizer_ids_go_in_and_out(tmp_path: Path) -> None:
    model = gpt2(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    answer, said = ask(model, tmp_path, {"token_ids": [5, 17, 9]}, max_new_tokens=6)
    expected = model.generate(torch.tensor([[5, 17, 9]]), max_new_tokens=6, do_sample=False)[0, 3:].tolist()
    assert answer["token_ids"] == expected
    assert answer["text"] is None
    assert "".join(said).split() == [str(one) for one in expected]
    assert ask(model, tmp_path, {"line": "5, 17,9"}, max_new_tokens=6)[0] == answer
    for wrong in ({"prompt": "the ship"}, {"line": "the ship"}, {"token_ids": [300]}, {"token_ids": []}):
        with pytest.raises(WrongInput):
            ask(model, tmp_path, wrong)


def test_input_and_answer_must_fit_the_model(tmp_path: Path) -> None:
    model = gpt2(tmp_path)
    assert ask(model, tmp_path, {"token_ids": [1] * 60}, max_new_tokens=4)[0]["prompt_tokens"] == 60
    with pytest.raises(ContextTooLong, match=r"60 tokens of input and 5 new .* 65, .* 64"):
        ask(model, tmp_path, {"token_ids": [1] * 60}, max_new_tokens=5)


# --- encoders


def test_classification_scores_are_those_of_the_pipeline(tmp_path: Path) -> None:
    for kind in ("single_label_classification", "multi_label_classification", "regression"):
        directory = tmp_path / kind
        directory.mkdir()
        labels = {0: "calm", 1: "rough", 2: "frozen"}
        model = bert("BertForSequenceClassification", directory, problem_type=kind, id2label=labels)
        answer, said = ask(model, directory, {"text": "cold water"})
        expected = transformers.pipeline("text-classification", str(directory))("cold water", top_k=None)
        assert [one["label"] for one in answer["labels"]] == [one["label"] for one in expected]
        assert [one["score"] for one in answer["labels"]] == pytest.approx([one["score"] for one in expected], abs=1e-6)
        assert said == []


def test_fill_mask_is_what_the_pipeline_gives(tmp_path: Path) -> None:
    model = bert("BertForMaskedLM", tmp_path)
    answer, _ = ask(model, tmp_path, {"text": "the [MASK] sails"})
    expected = transformers.pipeline("fill-mask", str(tmp_path))("the [MASK] sails")
    (mask,) = answer["masks"]
    assert mask["position"] == 2
    assert [one["token_id"] for one in mask["candidates"]] == [one["token"] for one in expected]
    assert [one["token"] for one in mask["candidates"]] == [one["token_str"] for one in expected]
    assert [one["score"] for one in mask["candidates"]] == pytest.approx([one["score"] for one in expected], abs=1e-6)
    assert [one["text"] for one in mask["candidates"]] == [one["sequence"] for one in expected]
    assert len(ask(model, tmp_path, {"text": "[MASK] [MASK]"})[0]["masks"]) == 2


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertModel"])
def test_a_text_without_a_mask_is_embedded(tmp_path: Path, name: str) -> None:
    model = bert(name, tmp_path)
    answer, _ = ask(model, tmp_path, {"text": "the ship"}, token_embeddings=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        vectors = model.base_model(**tokenizer("the ship", return_tensors="pt")).last_hidden_state[0]
    assert (answer["task"], answer["pooling"], answer["tokens"], answer["dimensions"]) == ("embedding", "mean", 4, 32)
    assert torch.equal(torch.tensor(answer["token_embeddings"]), vectors)
    assert torch.allclose(torch.tensor(answer["embedding"]), vectors.mean(dim=0), atol=1e-6)
    by_ids, _ = ask(model, tmp_path, {"token_ids": tokenizer("the ship")["input_ids"]})
    assert by_ids["embedding"] == answer["embedding"]


def test_an_encoder_refuses_a_longer_text(tmp_path: Path) -> None:
    model = bert("BertForMaskedLM", tmp_path)
    ask(model, tmp_path, {"text": "ship " * 38})
    with pytest.raises(ContextTooLong, match="41 tokens long, the model takes 40"):
        ask(model, tmp_path, {"text": "ship " * 39})


def test_roberta_cannot_use_the_positions_up_to_its_padding_token(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=50,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    model = save("RobertaModel", config, tmp_path)
    ask(model, tmp_path, {"token_ids": [5] * 18})
    with pytest.raises(ContextTooLong, match="takes 18"):
        ask(model, tmp_path, {"token_ids": [5] * 19})


# --- sentences


@pytest.fixture(scope="module")
def packaged() -> tuple[Any, Path]:
    directory = embedded_model()
    return transformers.AutoModel.from_pretrained(directory), directory


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("The mechanic turned off the steam just in time.", "valve"),
        ("What makes bread rise?", "yeast"),
        ("Protection against infectious disease", "vaccine"),
        ("Prices and monetary policy", "bank"),
        ("Somebody with a camera at dawn", "photographer"),
    ],
)
def test_the_packaged_model_ranks_by_meaning(packaged: tuple[Any, Path], text: str, word: str) -> None:
    model, directory = packaged
    (request,) = embedded_requests((text,))
    one, _ = ask(model, directory, request)
    assert word in one["ranking"][0]["sentence"]
    assert len(one["ranking"]) == 12
    typed, _ = ask(model, directory, {"line": text, "sentences": request["sentences"]})
    assert typed == one
    batched, _ = ask(model, directory, request, batch=5)
    scores = [row["score"] for row in one["ranking"]]
    assert [row["score"] for row in batched["ranking"]] == pytest.approx(scores, abs=1e-5)


def test_a_sentence_is_pooled_and_normalised_as_the_directory_says(packaged: tuple[Any, Path]) -> None:
    model, directory = packaged
    answer, _ = ask(model, directory, {"text": "A small robot."})
    vector = torch.tensor(answer["embedding"])
    assert (answer["pooling"], answer["normalized"], answer["dimensions"]) == ("mean", True, 384)
    assert vector.norm().item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ContextTooLong, match="takes 256"):
        ask(model, directory, {"text": "robot " * 300})


def test_other_poolings_and_unknown_modules(tmp_path: Path) -> None:
    model = bert("BertModel", tmp_path)
    types = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(types))
    (tmp_path / "1_Pooling").mkdir()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        vectors = model(**tokenizer("the ship", return_tensors="pt")).last_hidden_state[0]
    wanted = {"cls_token": vectors[0], "max_tokens": vectors.amax(dim=0), "lasttoken": vectors[-1]}
    for mode, expected in wanted.items():
        (tmp_path / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
        answer, _ = ask(model, tmp_path, {"text": "the ship"})
        assert torch.equal(torch.tensor(answer["embedding"]), expected), mode
        assert answer["normalized"] is False
    (tmp_path / "modules.json").write_text(json.dumps([*types, {"path": "2_Dense", "type": "x.Dense"}]))
    with pytest.raises(UnsupportedCheckpoint, match="Dense"):
        open_task(model, tmp_path, {})
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(CheckpointBroken):
        open_task(model, tmp_path, {})


# --- images


def picture(path: Path, mode: str = "RGB") -> str:
    from PIL import Image

    Image.linear_gradient("L").resize((50, 40)).convert(mode).save(path)
    return str(path)


def test_image_classification_needs_pillow_only(tmp_path: Path) -> None:
    model = vit(tmp_path)
    answer, _ = ask(model, tmp_path, {"image": picture(tmp_path / "cat.png")})
    expected = transformers.pipeline("image-classification", str(tmp_path))(str(tmp_path / "cat.png"), top_k=5)
    assert [one["label"] for one in answer["labels"]] == [one["label"] for one in expected]
    assert [one["score"] for one in answer["labels"]] == pytest.approx([one["score"] for one in expected], abs=1e-6)
    assert type(open_task(model, tmp_path, {}).input.processor).__name__ == "ViTImageProcessorPil"  # type: ignore[attr-defined]
    for mode in ("L", "RGBA", "P"):
        assert len(ask(model, tmp_path, {"line": picture(tmp_path / f"{mode}.png", mode)})[0]["labels"]) == 5


@pytest.mark.parametrize("size", [32, {"shortest_edge": 32}], ids=["fixed", "by the shorter edge"])
@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 1), ("RGB", 6), ("L", 1), ("L", 3)])
def test_pixels_are_those_of_the_processor(size: Any, mode: str, orientation: int, tmp_path: Path) -> None:
    """An image is made small before the processor copies it, and nothing may change by that."""
    from PIL import Image, ImageOps

    model = vit(tmp_path)
    settings = {"image_processor_type": "ViTImageProcessor", "size": size, "do_normalize": True, "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "noise.png"
    Image.effect_noise((90, 70), 80).convert(mode).save(path, exif=exif)
    task = open_task(model, tmp_path, {})
    assert (task.input.size is None) == isinstance(size, dict)  # type: ignore[attr-defined]
    pixels = task.input.read({"image": str(path)})  # type: ignore[attr-defined]
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert torch.equal(pixels, task.input.processor(images=upright, return_tensors="pt")["pixel_values"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "mode", "settings", "each"),
    [
        ("png", "RGB", {}, 4),
        ("png", "L", {}, 8),
        ("jpg", "RGB", {}, 5),
        ("jpg", "RGB", {"orientation": 6}, 9),
        ("jpg", "RGB", {"progressive": True}, 8),
        ("gif", "P", {}, 20),
    ],
)
def test_an_image_that_needs_more_than_is_left(
    name: str, mode: str, settings: dict[str, Any], each: int, tmp_path: Path
) -> None:
    from PIL import Image

    model, path = vit(tmp_path), tmp_path / f"cat.{name}"
    exif = Image.Exif()
    exif[0x0112] = settings.get("orientation", 1)
    Image.linear_gradient("L").resize((50, 40)).convert(mode).save(path, exif=exif, **settings)
    need = each * 50 * 40
    assert ask(model, tmp_path, {"image": str(path), "room_nbytes": need})[0]["labels"]
    with pytest.raises(CallTooLarge, match=r"cat\.... has 50 x 40 pixels, which need 0\.0 MiB to prepare"):
        ask(model, tmp_path, {"image": str(path), "room_nbytes": need - 1})


def test_a_base_checkpoint_embeds_an_image(tmp_path: Path) -> None:
    answer, _ = ask(vit(tmp_path, "ViTModel"), tmp_path, {"image": picture(tmp_path / "cat.png")})
    assert (answer["task"], answer["dimensions"], len(answer["embedding"])) == ("image-embedding", 32, 32)


def test_unreadable_images_are_one_line(tmp_path: Path) -> None:
    model = vit(tmp_path)
    whole = Path(picture(tmp_path / "cat.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.png").write_bytes(whole[:50] + b"\xff\x00" * 20 + whole[90:])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "flipped.png", "text.png", "empty.png", "missing.png", "."):
        with pytest.raises(BadImage) as caught:
            ask(model, tmp_path, {"image": str(tmp_path / name)})
        assert "\n" not in caught.value.line()


def test_an_image_model_without_processor_settings_is_refused(tmp_path: Path) -> None:
    model = vit(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UnsupportedCheckpoint, match="how images are prepared"):
        open_task(model, tmp_path, {})


# --- all of them


@pytest.mark.parametrize(
    ("make", "wrong", "takes"),
    [
        (gpt2, ("text", "image"), "--prompt or --token-ids"),
        (lambda d: bert("BertForMaskedLM", d), ("prompt", "image"), "--text or --token-ids"),
        (lambda d: bert("BertForSequenceClassification", d), ("prompt", "image"), "--text or --token-ids"),
        (lambda d: bert("BertModel", d), ("prompt", "image"), "--text or --token-ids"),
        (vit, ("prompt", "text", "token_ids"), "--image"),
    ],
)
def test_the_wrong_kind_of_input_is_named(tmp_path: Path, make: Any, wrong: tuple[str, ...], takes: str) -> None:
    model = make(tmp_path)
    for kind in wrong:
        with pytest.raises(WrongInput, match=f"{type(model).__name__} takes {takes}, not --{kind.replace('_', '-')}"):
            ask(model, tmp_path, {kind: "ship"})


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("GPTJForCausalLM", "text-generation"), ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"), ("RobertaForMaskedLM", "fill-mask"),
        ("DistilBertForSequenceClassification", "text-classification"), ("BertForPreTraining", "embedding"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"), ("ViTModel", "image-embedding"),
        ("LlamaModel", "embedding"),
    ],
)  # fmt: skip
def test_the_class_decides_the_task(tmp_path: Path, name: str, task: str) -> None:
    assert choose_task(transformers.BertConfig(), name, tmp_path) == task


def test_other_classes_are_refused(tmp_path: Path) -> None:
    for name, config in (("BertForQuestionAnswering", transformers.BertConfig()), ("T5Model", transformers.T5Config())):
        with pytest.raises(UnsupportedCheckpoint, match=name):
            choose_task(config, name, tmp_path)


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    model = bert("BertModel", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UnsupportedCheckpoint, match="tokenizer") as caught:
        open_task(model, tmp_path, {})
    assert "\n" not in caught.value.line()


def test_a_streamed_model_hears_when_nothing_follows(tmp_path: Path) -> None:
    told: list[int] = []

    def expect_passes(count: int) -> contextlib.AbstractContextManager[None]:
        told.append(count)
        return contextlib.nullcontext()

    model = gpt2(tmp_path)
    model.expect_passes = expect_passes
    task = open_task(model, tmp_path, {"max_new_tokens": 3})
    task.answer({"prompt": "the"}, lambda text: None, False)
    assert told == []
    task.answer({"prompt": "the"}, lambda text: None, True)
    assert told == [3]
