"""A real but tiny and untrained model, for tests where weights do not matter."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM


def tiny_llama(folder: Path, vocab_from: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a Llama with random weights (2 layers, 2 heads of 32) and the tokenizer of another model's folder.

    The same seed gives the same weights. Whatever loads a Llama loads it; 32 is a head size that vLLM knows on CPUs.
    """
    tokenizer = AutoTokenizer.from_pretrained(vocab_from)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
