"""ImageNet's nets of AMM's Table 7: torchvision's and timm's, normalised input, their weights if asked for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from margins import paths
from margins._sources import NotAvailable, offline, roots, sha256
from margins.errors import MarginsError
from margins.models.cnn import OfImages
from margins.models.layers import Normalised, draw, images

#: By which the published networks' pixels in [0, 1] are normalised, a channel each.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: The folder of published weights below a root (MARGINS_DATA, then the cache).
FOLDER = "imagenet-networks"


class OfImageNet(OfImages, ABC):
    """A published network: normalised pixels, the network's own layers up to the pooled features, its linear `head`.

    Takes x (B, *shape) in [0, 1], shape (3, H, W) with H and W of 32 or more, and returns logits (B, classes).
    weights: the published ones, of 1000 classes; they are looked for in the folder FOLDER of MARGINS_DATA and of the
    cache, and are downloaded into the latter unless MARGINS_OFFLINE=1 forbids it. Otherwise convolutions and linear
    layers are He's, drawn from `generator`, None for a new one with seed 0. Raises MarginsError for weights that do not
    fit or are damaged, and its kind NotAvailable where they, or the library, can't be had.
    """

    #: What the library calls the last layer.
    last = "fc"

    def __init__(
        self,
        shape: Sequence[int] = (3, 224, 224),
        classes: int = 1000,
        weights: bool = False,
        *,
        generator: torch.Generator | None = None,
    ):
        shape = images(shape, classes, least=32)
        if shape[0] != 3:
            raise MarginsError(f"shape must be (3, H, W), but is {shape}")
        if weights and classes != 1000:
            raise MarginsError(f"classes must be 1000 with the published weights, but is {classes}")
        super().__init__()
        self.shape = shape
        with torch.device("meta"):  # where the libraries draw nothing from the global random state
            net, url = self._published(classes)
        net = net.to_empty(device="cpu")
        generator = generator or torch.Generator().manual_seed(0)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                draw(module, generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        if weights:
            net.load_state_dict(_read(url))
        self.head = getattr(net, self.last)
        setattr(net, self.last, nn.Identity())
        self.body = nn.Sequential(Normalised(MEAN, DEVIATION), net)

    @abstractmethod
    def _published(self, classes: int) -> tuple[nn.Module, str]:
        """The library's network, and the address of its weights, whose name ends with the beginning of their digest."""


class ResNet18(OfImageNet):
    """ResNet-18 of torchvision with the first of its published weights: 11,689,512 parameters. See `OfImageNet`."""

    def _published(self, classes: int) -> tuple[nn.Module, str]:
        from torchvision.models import ResNet18_Weights, resnet18

        return resnet18(num_classes=classes), ResNet18_Weights.IMAGENET1K_V1.url


class ResNet50(OfImageNet):
    """ResNet-50 of torchvision with the first of its published weights: 25,557,032 parameters. See `OfImageNet`."""

    def _published(self, classes: int) -> tuple[nn.Module, str]:
        from torchvision.models import ResNet50_Weights, resnet50

        return resnet50(num_classes=classes), ResNet50_Weights.IMAGENET1K_V1.url


class SENet50(OfImageNet):
    """SE-ResNet-50 of timm: 28,088,024 parameters. See `OfImageNet`.

    timm's "legacy" one is the network of the collection that AMM took its networks from (section 4.4.5, footnote), with
    the same weights; timm's other SE-ResNet-50 has its strides elsewhere.
    """

    last = "last_linear"

    def _published(self, classes: int) -> tuple[nn.Module, str]:
        try:
            import timm
        except ImportError as error:
            raise NotAvailable('senet-50 needs timm: pip install "margins-book[imagenet]"') from error
        net = timm.create_model("legacy_seresnet50", num_classes=classes, drop_rate=0.0)
        return net, net.default_cfg["url"]


def _read(url: str) -> dict[str, Tensor]:
    """The weights of that address, from the first place that has the file, or downloaded."""
    name = url.rsplit("/", 1)[-1]
    digest = name.rsplit("-", 1)[-1].split(".")[0]
    places = [paths.note(root / FOLDER / name) for root in roots()]
    path = next((place for place in places if place.is_file()), places[-1])
    if not path.is_file():
        looked = f"{name} was not found: looked at {', '.join(map(str, places))}"
        if offline():
            raise NotAvailable(f"{looked}; MARGINS_OFFLINE forbids a download")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
        except Exception as error:  # whatever went wrong on the way, the weights are not to be had
            why = " ".join(str(error).split())
            raise NotAvailable(f"{looked}; the download failed ({why}). Fetch {url} and put it there") from error
    status = path.stat()
    if not (found := sha256(path, status.st_mtime_ns, status.st_size)).startswith(digest):
        raise MarginsError(f"{path} is altered: SHA-256 {found} does not begin with {digest}; replace it, or delete it")
    return torch.load(path, map_location="cpu", weights_only=True)
