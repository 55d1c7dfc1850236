"""Random models of `transformers` in a few kilobytes, saved as snapshots."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
WORDS = [
    "a",
    "the",
    "of",
    "in",
    "three",
    "words",
    "or",
    "fewer",
    "dog",
    "cat",
    "bell",
    "drum",
    "car",
    "engine",
    "bird",
    "man",
    "picture",
    "sound",
    "Picture",
    ":",
]
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} [assistant]{% endif %}"
)


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    table = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=table, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    made.add_special_tokens({"additional_special_tokens": SPECIAL[4:]})
    if chat:
        made.chat_template = CHAT
    return made


def chat_model(folder: Path, chat: bool = True) -> Path:
    """An instruction model (Mistral) that answers random words."""
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.7,  # so that answers depend on what is asked
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return folder


def picture_captioner(folder: Path) -> Path:
    """A BLIP-2 that sees pictures of 32 pixels."""
    torch.manual_seed(4)
    text = tokenizer(chat=False)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    width |= {"initializer_range": 0.7}
    opt = {
        "init_std": 0.7,
        "model_type": "opt",
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 16,
        "num_hidden_layers": 1,
    }
    opt |= {"num_attention_heads": 2, "vocab_size": len(text), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Blip2Config(
        vision_config=width | {"image_size": 32, "patch_size": 16},
        qformer_config=width | {"encoder_hidden_size": 16, "vocab_size": len(text)},
        text_config=opt,
        num_query_tokens=2,
        image_token_index=SPECIAL.index("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(pictures, text, num_query_tokens=2).save_pretrained(folder)
    return folder


def chatting_captioner(folder: Path) -> Path:
    """A LLaVA that is asked about pictures of 32 pixels in its chat format."""
    torch.manual_seed(6)
    text = tokenizer()
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    llm = width | {"model_type": "llama", "vocab_size": len(text), "initializer_range": 0.7, "pad_token_id": 0}
    config = LlavaConfig(
        vision_config=width | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16},
        text_config=llm | {"bos_token_id": 1, "eos_token_id": 2},
        image_token_index=SPECIAL.index("<image>"),
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)
    how = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(pictures, text, chat_template=CHAT, **how).save_pretrained(folder)
    return folder


def sound_captioner(folder: Path) -> Path:
    """A Qwen2-Audio that hears two seconds."""
    torch.manual_seed(5)
    text = tokenizer()
    llm = {
        "model_type": "qwen2",
        "initializer_range": 0.7,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
    }
    llm |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(text)}
    ears = {"init_std": 0.7, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    config = Qwen2AudioConfig(
        audio_config=ears | {"num_mel_bins": 8, "max_source_positions": 100},
        text_config=llm | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        audio_token_index=SPECIAL.index("<|AUDIO|>"),
    )
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    hear = WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    Qwen2AudioProcessor(hear, text, chat_template=CHAT).save_pretrained(folder)
    return folder
