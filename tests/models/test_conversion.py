"""The packaged chat model, converted for real: its answers, its files, and what a kill or a failure leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mosaic.errors import Unavailable
from mosaic.models import ModelResolver
from mosaic.models.cache import digests, entry
from mosaic.models.doubles import tiny_llama
from mosaic.models.resolve import convert_gguf
from mosaic.storage import Storage

ENTRY = "smollm2-135m-instruct-0.1.2"

RESOLVE = """
import sys
from pathlib import Path
from mosaic.models import ModelResolver
from mosaic.storage import Storage
cache = Path(sys.argv[1])
print(ModelResolver(cache, Storage(str(cache / "root"))).resolve("smollm2-135m-instruct"))
"""


class Conversion(NamedTuple):
    """What was seen while the packaged chat model was converted."""

    cache: Path
    answers: list[str]
    """What two processes that asked at the same time were told."""
    statuses: list[int]


def convert(cache: Path) -> Conversion:
    """Two processes ask for the packaged chat model at once."""
    both = [
        subprocess.Popen([sys.executable, "-c", RESOLVE, str(cache)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=240)[0].strip() for process in both]
    return Conversion(cache, answers, [process.returncode for process in both])


@pytest.fixture(scope="session")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """One real conversion for all tests, since it takes a while."""
    return convert(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def smollm(conversion: Conversion) -> Path:
    """The folder of SmolLM2, converted."""
    return Path(conversion.answers[0])


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.faults
def test_a_killed_conversion_leaves_no_entry_and_the_next_one_is_whole(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", RESOLVE, str(tmp_path)])
    limit = time.monotonic() + 60
    while not _children(killed.pid):
        assert time.monotonic() < limit and killed.poll() is None
        time.sleep(0.05)
    converter = _children(killed.pid)[0]
    time.sleep(1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    while _is_alive(converter):  # it notices that its starter is gone
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert [path.name for path in (tmp_path / "packaged").iterdir() if path.is_dir()] == [f".making-{ENTRY}"]
    assert convert(tmp_path).answers == [str(tmp_path / "packaged" / ENTRY)] * 2


def test_two_processes_at_once_get_one_whole_entry(conversion: Conversion) -> None:
    place = conversion.cache / "packaged" / ENTRY
    assert conversion.statuses == [0, 0] and conversion.answers == [str(place), str(place)]
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == [ENTRY]
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest == {"name": "smollm2-135m-instruct", "files": digests(place)}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= manifest["files"].keys()
    started = time.monotonic()
    again = ModelResolver(conversion.cache, Storage(str(conversion.cache / "root"))).resolve("smollm2-135m-instruct")
    assert again == place and time.monotonic() - started < 1


def test_smollm_answers_and_stops(smollm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    model = AutoModelForCausalLM.from_pretrained(smollm)
    assert model.dtype == torch.bfloat16 and model.config.eos_token_id == model.generation_config.eos_token_id == 2
    chat = [{"role": "user", "content": "The capital of Japan is"}]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**tokens, max_new_tokens=40, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert "Tokyo" in tokenizer.decode(answer)
    assert len(answer) < 40 and tokenizer.decode(answer[-1:]) == "<|im_end|>"
    assert tokenizer.model_max_length == 8192


def test_a_conversion_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(Unavailable, match=r"converting broken.gguf failed with status 1: (.|\n)*error"):
        entry(tmp_path / "cache" / "broken", "broken", lambda to: convert_gguf(tmp_path / "broken.gguf", to, 100))
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_tiny_llama_is_small_repeatable_and_talks(smollm: Path, tmp_path: Path) -> None:
    first, second = tiny_llama(tmp_path / "a", smollm), tiny_llama(tmp_path / "b", smollm)
    assert digests(first) == digests(second) != digests(tiny_llama(tmp_path / "c", smollm, seed=1))
    resolver = ModelResolver(tmp_path / "cache", Storage(str(tmp_path / "root")))
    model = AutoModelForCausalLM.from_pretrained(resolver.resolve(str(first)))
    tokens = AutoTokenizer.from_pretrained(first)("hello", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=3, do_sample=False).shape[1] > tokens["input_ids"].shape[1]
    assert model.config.head_dim == 32 and sum(part.numel() for part in model.parameters()) < 4_000_000
