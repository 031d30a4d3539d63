"""Writes Hugging Face models as GGUF files, with the changes of layout that llama.cpp makes."""

import json

import gguf
import numpy as np


def _halves_interleaved(weight, heads):
    """llama.cpp rotates neighbouring numbers, Hugging Face those half a head apart."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _of_llama(name, weight, config):
    if ".attn_q." in name:
        return _halves_interleaved(weight, config.num_attention_heads)
    if ".attn_k." in name:
        return _halves_interleaved(weight, config.num_key_value_heads)
    return weight


def _of_gpt2(name, weight, config):
    turned = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")
    return weight.T if name.endswith(turned) else weight


def _of_gemma(name, weight, config):
    return weight + 1 if "norm" in name else weight


def _same(name, weight, config):
    return weight


ARCHITECTURES = {
    "llama": ("llama", _of_llama),
    "qwen2": ("qwen2", _same),
    "qwen3": ("qwen3", _same),
    "gpt2": ("gpt2", _of_gpt2),
    "gemma2": ("gemma2", _of_gemma),
    "phi3": ("phi3", _same),
}
"""The GGUF architecture of a small model, and what llama.cpp changes in its tensors."""


def _settings(writer, name, config):
    heads = config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if name == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if name == "gemma2":
        writer.add_sliding_window(config.sliding_window)


def write_tokenizer(writer, tokenizer, pre="gpt-2", **ids):
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids) | {
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types([3 if i in special else 1 for _, i in by_id])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    for key, token in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def write_gguf(
    path,
    name,
    model,
    tokenizer,
    *,
    pre="gpt-2",
    add_bos=None,
    extra=None,
    drop=(),
    ids=None,
    more=(),
):
    """`extra` are further settings of the architecture, `more` further tensors."""
    architecture, changed = ARCHITECTURES[name]
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"random {name}")
    _settings(writer, name, config)
    for key, value in (extra or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{architecture}.{key}", value)
    write_tokenizer(writer, tokenizer, pre, **(ids or {}))
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    kinds = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        stem, _, ending = key.rpartition(".")
        found = names.get_name(stem)
        if found is None or (key == "lm_head.weight" and config.tie_word_embeddings):
            continue
        called = f"{found}.{ending}"
        if called not in drop:
            array = changed(called, weight.numpy(), config)
            writer.add_tensor(called, np.ascontiguousarray(array, dtype=np.float32))
    for called, array in more:
        writer.add_tensor(called, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
