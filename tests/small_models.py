"""Random models of many architectures, small enough to be made and saved by a test."""

import transformers

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GATED = SMALL | {"intermediate_size": 48, "max_position_embeddings": 256}
GROUPED = GATED | {"num_key_value_heads": 2}

LEARNED = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
SLIDING = GROUPED | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
NOT_SLIDING = GROUPED | {"sliding_window": None}

ARCHITECTURES = {
    "gpt2": (transformers.GPT2Config, LEARNED, "hooked"),
    "gpt_neo": (
        transformers.GPTNeoConfig,
        {
            "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], 1]], "window_size": 8,
        },
        "hooked",
    ),
    "gpt_neox": (transformers.GPTNeoXConfig, GATED | {"rotary_pct": 0.5}, "hooked"),
    "gptj": (transformers.GPTJConfig, LEARNED | {"rotary_dim": 4}, "hooked"),
    "opt": (
        transformers.OPTConfig,
        SMALL | {"ffn_dim": 48, "max_position_embeddings": 256, "word_embed_proj_dim": 32},
        "hooked",
    ),
    "bloom": (transformers.BloomConfig, {"hidden_size": 32, "n_layer": 3, "n_head": 4}, "hooked"),
    "llama": (transformers.LlamaConfig, GROUPED, "hooked"),
    "mistral": (transformers.MistralConfig, NOT_SLIDING, "hooked"),
    "mixtral": (transformers.MixtralConfig, NOT_SLIDING | {"num_local_experts": 4}, "hooked"),
    "qwen2": (transformers.Qwen2Config, GROUPED, "hooked"),
    "qwen3": (transformers.Qwen3Config, GROUPED | {"head_dim": 16}, "hooked"),
    "phi3": (
        transformers.Phi3Config, GATED | {"pad_token_id": 0, "sliding_window": None}, "hooked",
    ),
    "phi": (transformers.PhiConfig, GATED, "bridge"),
    "gemma": (transformers.GemmaConfig, GROUPED | {"head_dim": 8}, "bridge"),
    "gemma2": (transformers.Gemma2Config, SLIDING, "bridge"),
    "gemma3": (transformers.Gemma3TextConfig, SLIDING, "bridge"),
    "olmo": (transformers.OlmoConfig, GROUPED, "bridge"),
    "olmo2": (transformers.Olmo2Config, GROUPED, "bridge"),
    "stablelm": (transformers.StableLmConfig, GROUPED, "bridge"),
}  # fmt: skip
"""Their configuration, what it is given, and the host that they load on by themselves."""


def save_random(name, folder, tokenizer, seed=0):
    """A random model of that architecture with this tokenizer, as a Hugging Face directory."""
    import torch

    kind, fields, _ = ARCHITECTURES[name]
    config = kind(
        **fields,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        **({} if "pad_token_id" in fields else {"pad_token_id": tokenizer.pad_token_id}),
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms that do nothing and biases of zero would hide mistakes
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


HOSTS = {
    "llama": {
        "positional_embedding_type": "rotary", "rotary_dim": 4, "gated_mlp": True,
        "normalization_type": "RMS", "final_rms": True, "rotary_adjacent_pairs": False,
    },
    "grouped": {
        "positional_embedding_type": "rotary", "rotary_dim": 4, "n_key_value_heads": 2,
        "normalization_type": "RMS",
    },
    "half rotary, parallel": {
        "positional_embedding_type": "rotary", "rotary_dim": 2, "parallel_attn_mlp": True,
        "normalization_type": "LN",
    },
    "adjacent": {
        "positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": True,
        "normalization_type": "LN",
    },
    "learned": {"positional_embedding_type": "standard", "normalization_type": "LN"},
    "alibi": {"positional_embedding_type": "alibi", "normalization_type": "LN"},
    "shortformer": {"positional_embedding_type": "shortformer", "normalization_type": "LN"},
    "local": {
        "positional_embedding_type": "standard", "normalization_type": "LN",
        "use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"],
    },
    "heads apart": {
        "positional_embedding_type": "rotary", "rotary_dim": 4, "normalization_type": "LN",
        "use_split_qkv_input": True,
    },
    "no norm": {"positional_embedding_type": "standard", "normalization_type": None},
    "stretched rotary": {
        "positional_embedding_type": "rotary", "rotary_dim": 4, "normalization_type": "RMS",
        "use_dynamic_ntk_rope": True, "train_seq_length": 8,
    },
}  # fmt: skip
"""Settings of small HookedTransformers, one for each way of attention and norms."""
