"""Models from a Hugging Face hub, or a mirror of one, with an answer within seconds when it cannot be reached."""

import shutil
from pathlib import Path

import httpx2  # what huggingface_hub speaks HTTP with, and whose errors it lets through
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from mosaic.errors import NotFound, PermissionDenied, Unavailable
from mosaic.models.packaged import PACKAGED

_ANSWER_SECONDS = 5.0

# Weights as safetensors only: other formats can carry code.
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def download(repository: str, folder: Path, endpoint: str | None = None) -> None:
    """Fetch a repository's newest revision; raises NotFound, PermissionDenied for a gated one, Unavailable."""
    try:
        # snapshot_download waits for its first answer without a limit, so the hub is asked beforehand with one.
        newest = HfApi(endpoint=endpoint).model_info(repository, timeout=_ANSWER_SECONDS)
        snapshot_download(
            repository,
            revision=newest.sha,
            local_dir=folder,
            cache_dir=folder.parent / "cache",
            endpoint=endpoint,
            etag_timeout=_ANSWER_SECONDS,
            allow_patterns=_WANTED,
            max_workers=4,
        )
    except GatedRepoError as error:
        raise PermissionDenied(
            f"model {repository!r} is gated on the hub; log in there and accept its terms"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"no model {repository!r} on the hub", param="model", code="model_not_found") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise Unavailable(
            f"model {repository!r} is the id of a model on a hub, and the hub cannot be reached "
            f"({type(error).__name__}: {error}); what works without it: a packaged model {sorted(PACKAGED)}, a local "
            f"folder such as './{repository}', a registered version such as 'main.ml.bot/3', or an address such as "
            "'s3://bucket/folder'"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes for resuming, if it left any
