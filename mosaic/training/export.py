"""The trained adapter as a folder in PEFT's format, which vLLM serves as it is; checked by loading it again."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mosaic.errors import MosaicError
from mosaic.training.job import checksums

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def export_adapter(
    model: Any, folder: Path, *, base_name: str, base_folder: str, sample_ids: torch.Tensor
) -> dict[str, str]:
    """Write the adapter, load it onto a fresh base and compare its weights and its logits for `sample_ids`.

    Gives the SHA-256 of every file. Raises MosaicError if what was read back is not what was trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    config_path = folder / CONFIG_FILE
    config = json.loads(config_path.read_text())
    config["base_model_name_or_path"] = base_name
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    _compare_weights(model, folder)
    _compare_logits(model, folder, base_folder, sample_ids)
    return checksums(folder)


def _compare_weights(model: Any, folder: Path) -> None:
    saved = load_file(str(folder / WEIGHTS_FILE))
    trained = {
        name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if saved.keys() != trained.keys():
        raise MosaicError(f"the exported adapter lacks or adds weights: {sorted(saved.keys() ^ trained.keys())[:6]}")
    for name, tensor in saved.items():
        if not torch.equal(tensor, trained[name].detach().cpu()):
            raise MosaicError(f"the exported adapter's {name} is not what was trained")


def _compare_logits(model: Any, folder: Path, base_folder: str, sample_ids: torch.Tensor) -> None:
    parameter = next(model.parameters())
    base = AutoModelForCausalLM.from_pretrained(
        base_folder, dtype=parameter.dtype, attn_implementation=model.config._attn_implementation
    )
    again = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False).to(parameter.device).eval()
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ours, theirs = (each(input_ids=sample_ids, use_cache=False).logits.float() for each in (model, again))
    model.train(was_training)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise MosaicError(
            f"the exported adapter answers differently: logits are up to {(ours - theirs).abs().max():.3g} apart"
        )
