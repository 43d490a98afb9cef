"""Images in a download's zip and tar archives, read in place.

LLaVA's conversations point into five image sets of up to 22 GB. Unpacking them would double the disk and
make half a million files; instead, an image is looked up by its name in the archive. Nothing is
extracted, so no name can escape the folder.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from reca.core.unreadable import UnreadableImage
from reca.data.readers.folder import natural_key, read_file
from reca.data.readers.hashes import hash_files
from reca.data.readers.tar import MAX_MEMBER_BYTES, Member, read_index, read_member


class ImageFolder:
    """A folder of images, as files or inside its zip and tar archives.

    Raises:
        ValueError: no such folder, a damaged archive, or a name that two archives contain.
    """

    def __init__(self, root: Path, max_member_bytes: int = MAX_MEMBER_BYTES) -> None:
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder of images; fetch its source first")
        self.root, self.limit = root, max_member_bytes
        files = sorted(root.iterdir(), key=lambda path: natural_key(path.name))
        self.archives = [path for path in files if path.suffix in (".zip", ".tar")]
        self._members: dict[str, zipfile.ZipFile | tuple[Path, Member]] = {}
        for archive in self.archives:
            members = self._of_zip(archive) if archive.suffix == ".zip" else self._of_tar(archive)
            if twice := members.keys() & self._members.keys():
                raise ValueError(f"{archive}: {min(twice)!r} is also in another archive of {root}")
            self._members |= members

    def __contains__(self, name: str) -> bool:
        """Whether there is a file or member of this name."""
        return name in self._members or (self.root / name).is_file()

    def read(self, name: str, sample: str) -> bytes:
        """The bytes of the image `name`; `UnreadableImage` says why `sample` has none."""
        place = self._members.get(name)
        if place is None:
            return read_file(self.root / name, sample)
        if isinstance(place, zipfile.ZipFile):
            return self._read_zip(place, name, sample)
        return read_member(*place, sample)

    def fingerprint(self) -> str:
        """Hash of the archives' names and contents; loose files are hashed by who names them."""
        return hash_files(self.root, [path.name for path in self.archives])

    # ---- archives ------------------------------------------------------------------------------
    def _of_zip(self, archive: Path) -> dict[str, zipfile.ZipFile]:
        try:
            opened = zipfile.ZipFile(archive)
        except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeError) as fault:
            raise ValueError(f"{archive}: damaged zip ({fault}); fetch it again") from fault
        return {info.filename: opened for info in opened.infolist() if not info.is_dir()}

    def _of_tar(self, archive: Path) -> dict[str, tuple[Path, Member]]:
        members = map(Member._make, read_index(archive, self.limit)["members"])
        return {member.name: (archive, member) for member in members}

    def _read_zip(self, archive: zipfile.ZipFile, name: str, sample: str) -> bytes:
        found = archive.getinfo(name)
        claimed = found.file_size
        place = f"{name} in {Path(archive.filename or '').name}"
        if claimed > self.limit:
            raise UnreadableImage(sample, f"{name} claims {claimed} bytes; at most {self.limit}")
        if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnreadableImage(
                sample, f"{place} is packed by method {found.compress_type}; pack it by deflate"
            )
        try:
            with archive.open(name) as member:  # safe in threads
                # A header may claim less than there is: only that much is unpacked.
                data = member.read(claimed)
                if len(data) < claimed:
                    raise EOFError
                return data  # the CRC was checked with the last byte
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as fault:
            raise UnreadableImage(sample, f"{place} is damaged") from fault
        except (RuntimeError, NotImplementedError) as fault:
            raise UnreadableImage(sample, f"{place} is encrypted or oddly packed") from fault
