"""The data sets that come from files: what the original files are, where they are looked for, how they are fetched."""

import contextlib
import functools
import hashlib
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from margins import paths
from margins.errors import MarginsError


class NotAvailable(MarginsError):
    """The data set is in none of the places looked at and was not downloaded."""


@dataclass(frozen=True)
class Source:
    """A set that comes from files: its folder under a root, its class in torchvision, and the original files.

    fetched: of SVHN, which torchvision downloads split by split, into the folder itself, the splits; after: the set
    whose files come before its own.
    """

    folder: str
    torchvision: str
    files: dict[str, dict[str, tuple[int, str]]]  # split -> file name -> (bytes, SHA-256)
    fetched: tuple[str, ...] = ()
    after: str | None = None


SOURCES = {
    "mnist": Source("MNIST/raw", "MNIST", {
        "train": {
            "train-images-idx3-ubyte": (47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
            "train-labels-idx1-ubyte": (60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        },
        "test": {
            "t10k-images-idx3-ubyte": (7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
            "t10k-labels-idx1-ubyte": (10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        },
    }),
    "fashion-mnist": Source("FashionMNIST/raw", "FashionMNIST", {
        "train": {
            "train-images-idx3-ubyte": (47040016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
            "train-labels-idx1-ubyte": (60008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        },
        "test": {
            "t10k-images-idx3-ubyte": (7840016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
            "t10k-labels-idx1-ubyte": (10008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
        },
    }),
    "cifar10": Source("cifar-10-batches-py", "CIFAR10", {
        "train": {
            "data_batch_1": (31035704, "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"),
            "data_batch_2": (31035320, "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"),
            "data_batch_3": (31035999, "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"),
            "data_batch_4": (31035696, "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"),
            "data_batch_5": (31035623, "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"),
        },
        "test": {"test_batch": (31035526, "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831")},
    }),
    "cifar100": Source("cifar-100-python", "CIFAR100", {
        "train": {"train": (155249918, "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b")},
        "test": {"test": (31049707, "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864")},
    }),
    "svhn": Source("SVHN", "SVHN", {
        "train": {
            "train_32x32.mat": (182040794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        },
        "test": {"test_32x32.mat": (64275384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b")},
    }, fetched=("train", "test")),
    "svhn-extra": Source("SVHN", "SVHN", {
        "train": {
            "extra_32x32.mat": (1329278602, "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"),
        },
        "test": {},
    }, fetched=("extra",), after="svhn"),
}  # fmt: skip


def roots() -> list[Path]:
    """The places to look at, in this order: MARGINS_DATA if it is set, the cache."""
    given = os.environ.get("MARGINS_DATA")
    if given and not Path(given).is_dir():
        raise MarginsError(f"MARGINS_DATA={given}: no such folder; name one in torchvision's layout, or unset it")
    return [*([Path(given)] if given else []), paths.CACHE]


def needed(name: str) -> list[str]:
    """The sets of files that the set is read from, itself the last."""
    after = SOURCES[name].after
    return [*([] if after is None else needed(after)), name]


def files(name: str, split: str) -> list[Path]:
    """The checked files of a split, downloaded where they are missing."""
    folders = {one: find(one) or download(one) for one in needed(name)}
    return [folder / file for one, folder in folders.items() for file in SOURCES[one].files[split]]


def offline() -> bool:
    """Whether MARGINS_OFFLINE forbids downloads."""
    return os.environ.get("MARGINS_OFFLINE", "0") not in ("", "0")


def find(name: str) -> Path | None:
    """The first folder that holds the set's own files, after checking them; None if no place has any of them."""
    source = SOURCES[name]
    originals = {file: original for files in source.files.values() for file, original in files.items()}
    for root in roots():
        folder = root / source.folder
        missing = [file for file in originals if not (folder / file).is_file()]
        if not missing:
            for file, original in originals.items():
                _check_file(folder / file, *original)
            return folder
        paths.note(folder)  # a page that did without is executed again when the files appear
        if len(missing) < len(originals):
            raise MarginsError(f"{name} in {folder} is incomplete: {', '.join(missing)} missing; nothing was changed")
    return None


def _check_file(path: Path, size: int, digest: str) -> None:
    """Raise MarginsError unless the file at `path` is the original one of `size` bytes and SHA-256 `digest`."""
    status = paths.note(path).stat()
    if status.st_size != size:
        what = "truncated" if status.st_size < size else "altered"
        found = f"{status.st_size} bytes instead of {size}"
    elif (actual := sha256(path, status.st_mtime_ns, size)) != digest:
        what, found = "altered", f"SHA-256 {actual} instead of {digest}"
    else:
        return
    raise MarginsError(f"{path} is {what}: {found}. It was left untouched; replace it with the original, or delete it.")


@functools.cache
def sha256(path: Path, mtime_ns: int, size: int) -> str:
    """The digest of a file, computed once while its time and size stay the same."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MarginsError(f"{path} can't be read: {error.strerror}") from error


def download(name: str) -> Path:
    """Fetch the set into the cache through torchvision and return its folder.

    It arrives in a scratch folder that is renamed at the end, so an interrupted download never looks whole.
    """
    source = SOURCES[name]
    if offline():
        raise _not_available(name, "MARGINS_OFFLINE forbids a download")
    import torchvision

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    scratch = None
    try:
        paths.CACHE.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=paths.CACHE))
        fetch = getattr(torchvision.datasets, source.torchvision)
        for split in source.fetched:
            fetch(scratch / source.folder, split=split, download=True)
        if not source.fetched:
            fetch(scratch, download=True)
        target = paths.CACHE / source.folder
        _move(scratch / source.folder, target)
    except Exception as error:  # whatever went wrong on the way, the set is not to be had
        raise _not_available(name, f"the download failed ({' '.join(str(error).split())})") from error
    finally:
        socket.setdefaulttimeout(timeout)
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    if (found := find(name)) is None:
        raise _not_available(name, f"the download could not be moved to {target}, where something else lies")
    return found


def _move(scratch: Path, target: Path) -> None:
    """The folder, or where there is one already, as of another set or of a process that was faster, what it lacks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        scratch.rename(target)
    for path in scratch.iterdir() if scratch.is_dir() else ():
        if not (target / path.name).exists():
            path.rename(target / path.name)


def _not_available(name: str, why: str) -> NotAvailable:
    source = SOURCES[name]
    looked = ", ".join(str(root / source.folder) for root in roots())
    return NotAvailable(
        f"{name} was not found: looked at {looked}; {why}. Set MARGINS_DATA to a folder in torchvision's layout "
        f"(with {source.folder}/ in it), or run this where there is a network: "
        f"python -c \"from margins import datasets; datasets.load('{name}')\""
    )
