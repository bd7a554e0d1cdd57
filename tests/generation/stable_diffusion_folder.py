"""A tiny random Stable Diffusion folder, as diffusers writes it."""

import json

import diffusers
import transformers

from tests.encoders.latent_oracles import KL, UNET_1, UNET_2, randomized

# As published with 1.x: of PNDM, but with keys of DDIM.
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "projection_dim": 16,
}
SMALL = {"layers_per_block": 1}  # compiles in half the time
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}


def words(folder, pad):
    """Writes a CLIP tokenizer of letters and few merges; `pad` is the padding token."""
    letters = [chr(code) for code in range(33, 127)]
    merges = ["r e", "c i", "r c", "re d</w>", "o f</w>"]
    pieces = letters + [f"{letter}</w>" for letter in letters]
    pieces += [merge.replace(" ", "") for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    description = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(description))
    return len(pieces)


def write(folder, second=False, **scheduler):
    """Writes the folder; second: 2.x's text encoder, heads and padding instead of 1.x's.

    scheduler: keys of scheduler_config.json that differ.
    """
    entries = words(folder / "tokenizer", "!" if second else "<|endoftext|>")
    config = transformers.CLIPTextConfig(
        **TEXT,
        vocab_size=entries,
        max_position_embeddings=77,
        hidden_act="gelu" if second else "quick_gelu",
        bos_token_id=entries - 2,
        eos_token_id=2,
        pad_token_id=0 if second else 1,
    )
    text = randomized(transformers.CLIPTextModel(config), 1)
    text.save_pretrained(folder / "text_encoder")
    sizes = {**(UNET_2 if second else UNET_1), "cross_attention_dim": 24, **SMALL}
    sizes["transformer_layers_per_block"] = 1
    unet = diffusers.UNet2DConditionModel(**sizes)
    randomized(unet, 2).save_pretrained(folder / "unet")
    stage = diffusers.AutoencoderKL(**{**KL, **SMALL})
    randomized(stage, 3).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    values = {**SCHEDULER, **scheduler}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(values))
    index = {**INDEX, "scheduler": ["diffusers", values["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
