"""A GGUF file becomes a folder in Hugging Face's layout: bf16 safetensors, tokenizer, chat template, settings.

Runs as a program of its own (`python -P convert.py FILE FOLDER MAX_TOKENS`) and imports nothing of ours: the gigabyte
that it needs is given back when it ends. It also ends when its starter does, which it sees from its standard input.
"""

import os
import sys
import threading
from pathlib import Path


def convert(gguf: Path, folder: Path, max_tokens: int) -> None:
    """Write the folder; weights are dequantized exactly, then rounded to bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # what is written to standard error is shown if the conversion fails
    where, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise SystemExit(f"{gguf} carries no chat template or no end token; it is not a chat model")
    tokenizer.model_max_length = max_tokens  # GGUF's tokenizer says 1e30
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The end of a turn must end the generation, in every engine: they read one or another of these two.
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _end_with_starter() -> None:
    os.read(0, 1)  # nothing is ever sent: this returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    convert(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
