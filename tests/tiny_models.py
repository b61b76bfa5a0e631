"""Tiny random models as directories a user could have, with tokenizers and processors made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = ["the", "ship", "sails", "over", "cold", "water", "while", "a", "small", "crab", "counts", "grey", "stones"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}</user>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def word_tokenizer(directory: Path) -> None:
    """One token a word, for encoders."""
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIAL, strict=True))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names)
    fast.save_pretrained(directory)


def byte_tokenizer(directory: Path, template: str | None = None) -> None:
    """Bytes and a few merges, for decoders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = template
    fast.save_pretrained(directory)


def save(model_class: str, config: Any, directory: Path, **settings: Any) -> Path:
    """Random weights, always the same."""
    torch.manual_seed(0)
    getattr(transformers, model_class)(config).save_pretrained(directory, **settings)
    return directory


def bert(directory: Path, model_class: str = "BertModel", tokenizer: bool = True, **settings: Any) -> Path:
    """A BERT of two layers and 18 words, unless told otherwise."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    words = {"vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": 48}
    config = transformers.BertConfig(**sizes | words | settings)
    save(model_class, config, directory)
    if tokenizer:
        word_tokenizer(directory)
    return directory


def gpt2(
    directory: Path, template: str | None = None, width: int = 32, layers: int = 2, tokenizer: bool = True
) -> Path:
    """A GPT-2 of 64 positions that says something else with every token, and never ends by itself."""
    config = transformers.GPT2Config(
        n_embd=width, n_layer=layers, n_head=2, n_positions=64, vocab_size=300, bos_token_id=0, eos_token_id=0,
        initializer_range=0.4 * (32 / width) ** 0.5, tie_word_embeddings=False,
    )  # fmt: skip
    save("GPT2LMHeadModel", config, directory)
    if tokenizer:
        byte_tokenizer(directory, template)
    return directory


DECODERS = {
    "gptj": ("GPTJ", {"n_embd": 64, "n_layer": 8, "n_head": 4, "n_positions": 64, "rotary_dim": 8}),
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
}


def decoder(directory: Path, name: str) -> Path:
    """One of DECODERS, of eight layers, 64 positions and no tokenizer; it says something else with every token."""
    kind, settings = DECODERS[name]
    sizes = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": None, "tie_word_embeddings": False}
    if name != "gptj":
        sizes |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    config = getattr(transformers, f"{kind}Config")(initializer_range=0.3, **sizes | settings)
    return save(f"{kind}ForCausalLM", config, directory)


def vit(directory: Path) -> Path:
    """A ViT that knows seven animals."""
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8,
        num_labels=7, id2label={at: f"animal {at}" for at in range(7)},
    )  # fmt: skip
    save("ViTForImageClassification", config, directory)
    processor = {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "do_normalize": True, "do_resize": True}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def picture(path: Path) -> Path:
    """A PNG of a gradient."""
    from PIL import Image

    Image.linear_gradient("L").resize((50, 40)).convert("RGB").save(path)
    return path


def make_models(folder: Path) -> None:
    """All of them, by the names of their directories; `big` has 100 MB, and takes a while even on a fast disk."""
    transformers.logging.disable_progress_bar()
    for name in ("gpt2", "chat", "mute", "big", "bert", "mlm", "classify", "vit"):
        (folder / name).mkdir()
    gpt2(folder / "gpt2")
    gpt2(folder / "chat", TEMPLATE)
    gpt2(folder / "mute", tokenizer=False)
    gpt2(folder / "big", width=512, layers=8)
    bert(folder / "bert")
    bert(folder / "mlm", "BertForMaskedLM")
    bert(folder / "classify", "BertForSequenceClassification", num_labels=3)
    vit(folder / "vit")
