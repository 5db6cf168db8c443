"""Storage: one root address, and bytes under it by address, on local disk or in an object store."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs
from pydantic import Field

from mosaic.errors import BadRequest, NotFound, Unavailable
from mosaic.settings import Settings
from mosaic.storage import durable
from mosaic.storage import options as spelling

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(?:/(.*))?", re.DOTALL)


class StorageSettings(Settings):
    """Where everything durable lives, except the SQL database of a cluster."""

    root: str = "~/.mosaic"
    """A local folder, or an address with s3://, gs:// or abfss://."""
    options: dict[str, str] = Field(default_factory=dict)
    """Options of the object store in deltalake's spelling, such as AWS_ENDPOINT_URL; empty for ambient credentials."""


class Storage:
    """Bytes by address.

    An address is an absolute local path or `scheme://bucket/key`. `address()` makes addresses under the root; reading
    works at any address, deleting only below the root. Local writes are atomic and flushed to disk; in object stores a
    single object's write is atomic by nature, a folder's upload is not. Pickles, so that it can travel to actors; safe
    for threads.
    """

    def __init__(self, root: str, options: Mapping[str, str] | None = None) -> None:
        self.options = spelling.checked_options(options or {})
        self._filesystems: dict[tuple[str, str], fs.FileSystem] = {}
        self.root = _checked_root(root)
        self.is_local = _split(self.root)[0] == ""

    @classmethod
    def from_settings(cls, settings: StorageSettings) -> "Storage":
        return cls(settings.root, settings.options)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.root, self.options))

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"  # without the options, which hold secrets

    def address(self, *parts: str) -> str:
        """The address of `parts` under the root; a part may hold slashes, but not '..', nor be absolute or empty."""
        for part in parts:
            _check_part(part)
        return "/".join([self.root.rstrip("/"), *parts]) if parts else self.root

    def local_path(self, address: str) -> Path:
        """The path of a local address; raises BadRequest for one in an object store."""
        scheme, _, path = _split(address)
        if scheme:
            raise BadRequest(f"{address!r} is not a local address; it is in the object store {scheme}://")
        return Path(path)

    def filesystem(self, address: str) -> tuple[fs.FileSystem, str]:
        """pyarrow's filesystem for an address, and the address's path on it."""
        scheme, authority, path = _split(address)
        # Azure's filesystem belongs to an account; the others serve every bucket.
        account = authority if scheme == "abfss" else ""
        if (scheme, account) not in self._filesystems:
            made = spelling.remote_filesystem(scheme, authority, self.options) if scheme else fs.LocalFileSystem()
            self._filesystems[scheme, account] = made
        container = authority.partition("@")[0]
        return self._filesystems[scheme, account], "/".join([container, path]).strip("/") if scheme else path

    def delta_options(self, address: str) -> dict[str, str]:
        """deltalake's `storage_options` for a table at that address; empty for a local one."""
        scheme = _split(address)[0]
        return spelling.delta_options(scheme, self.options) if scheme else {}

    def read_bytes(self, address: str) -> bytes:
        """A whole file; raises NotFound."""
        filesystem, path = self.filesystem(address)
        with _explained(address), filesystem.open_input_stream(path, compression=None) as stream:
            data: bytes = stream.read()
        return data

    def write_bytes(self, address: str, data: bytes) -> None:
        """Write or replace a whole file; a reader sees the old or the new one, never a part."""
        filesystem, path = self.filesystem(address)
        with _explained(address):
            if not _split(address)[0]:
                durable.write_file(Path(path), data)
                return
            with filesystem.open_output_stream(path, compression=None) as stream:
                stream.write(data)

    def exists(self, address: str) -> bool:
        """Whether there is a file or a folder."""
        filesystem, path = self.filesystem(address)
        with _explained(address):
            return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)

    def list(self, address: str) -> list[str]:
        """The addresses of what is directly in a folder, sorted; a missing folder is empty."""
        filesystem, path = self.filesystem(address)
        with _explained(address):
            found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = sorted(PurePosixPath(info.path).name for info in found)
        return [f"{address.rstrip('/')}/{name}" for name in names if not durable.is_temporary(name)]

    def delete(self, address: str) -> None:
        """Delete a file, or a folder with all in it; a missing one is fine. Raises BadRequest outside of the root."""
        if not address.startswith(self.root.rstrip("/") + "/") or not address[len(self.root) :].strip("/"):
            raise BadRequest(f"only what is below the root {self.root!r} can be deleted, not {address!r}")
        filesystem, path = self.filesystem(address)
        with _explained(address):
            if self.is_local:
                durable.remove(Path(path))
                return
            kind = filesystem.get_file_info(path).type
            if kind == fs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == fs.FileType.File:
                filesystem.delete_file(path)

    def upload(self, folder: Path, address: str) -> None:
        """Copy a local folder to an address, which then holds exactly its files; what was there before is replaced."""
        if not folder.is_dir():
            raise BadRequest(f"upload needs a folder; {str(folder)!r} is not one")
        filesystem, path = self.filesystem(address)
        with _explained(address):
            if not _split(address)[0]:
                place = Path(path)
                durable.make_folders(place.parent)
                temporary = durable.temporary_sibling(place)
                try:
                    shutil.copytree(folder, temporary)
                    durable.put_folder(temporary, place)
                finally:
                    durable.remove(temporary)
                return
            sent = set()
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    target = f"{path}/{file.relative_to(folder).as_posix()}"
                    fs.copy_files(str(file), target, fs.LocalFileSystem(), filesystem)
                    sent.add(target)
            for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True)):
                if info.type == fs.FileType.File and info.path not in sent:
                    filesystem.delete_file(info.path)

    def download(self, address: str, folder: Path) -> None:
        """Copy a folder from an address to a local folder, which must be missing or empty and appears at once, whole.

        Raises NotFound if nothing is there, BadRequest if `folder` holds something.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadRequest(f"download needs a missing or an empty folder; {str(folder)!r} holds something")
        filesystem, path = self.filesystem(address)
        durable.make_folders(folder.parent)
        temporary = durable.temporary_sibling(folder)
        try:
            with _explained(address):
                files = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
                files = [info for info in files if info.type == fs.FileType.File]
                if not files:
                    raise NotFound(f"no folder with files at {address!r}")
                for info in files:
                    target = temporary / PurePosixPath(info.path).relative_to(path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    fs.copy_files(info.path, str(target), filesystem, fs.LocalFileSystem())
            durable.put_folder(temporary, folder)
        finally:
            durable.remove(temporary)


def _checked_root(root: str) -> str:
    if not root.strip():
        raise BadRequest("storage needs a root: a local folder or an s3://, gs:// or abfss:// address", param="root")
    if "://" not in root:
        return str(Path(root).expanduser().absolute())
    scheme, authority, path = _split(root)
    if not scheme:
        return str(Path(path).absolute())
    if not authority:
        raise BadRequest(f"root {root!r} names no bucket; it should look like {scheme}://bucket/prefix", param="root")
    return f"{scheme}://{authority}/{path.strip('/')}".rstrip("/")


def _split(address: str) -> tuple[str, str, str]:
    """Scheme, authority and path of an address; the scheme is '' for a local one."""
    match = _SCHEME.fullmatch(address)
    if match is None:
        if not address.startswith("/"):
            raise BadRequest(f"{address!r} is no address; it must be an absolute path or start with a scheme")
        scheme, authority, path = "", "", address
    else:
        scheme, authority, path = match[1].lower(), match[2], match[3] or ""
        if scheme == "file" and not authority:
            scheme, path = "", "/" + path
        elif scheme not in spelling.SCHEMES:
            supported = ["a local path", *(f"{name}://" for name in spelling.SCHEMES)]
            raise BadRequest(f"address {address!r} has an unknown scheme {scheme!r}; supported are {supported}")
    if ".." in path.split("/") or "\0" in path:
        raise BadRequest(f"address {address!r} may not hold '..' or NUL")
    return scheme, authority, path


def _check_part(part: str) -> None:
    pieces = part.split("/")
    if "://" in part or any(piece in ("", ".", "..") for piece in pieces) or any(ord(letter) < 32 for letter in part):
        raise BadRequest(
            f"{part!r} is not a part of an address; parts are relative names, without '..', empty names or a scheme"
        )


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """pyarrow's errors in our words."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"nothing at {address!r}") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise BadRequest(f"{address!r} does not fit: {error}") from error
    except OSError as error:
        raise Unavailable(f"storage at {address!r} failed: {error}") from error
