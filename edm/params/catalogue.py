"""The published files that Tables 2, 3 and 4 use, as data: address, authors and licence of each.

The authors publish no checksums, so the workflow records one at the first use of a file.
"""

from typing import NamedTuple

_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
_SCORE_SDE = "https://drive.google.com/drive/folders/1tFmF_uh57O6lx9ggtZT_5LdonVK2cV-e"
_NVIDIA = "CC BY-NC-SA 4.0"


class Published(NamedTuple):
    """A file as its authors publish it.

    file: its name; url: of the file itself, None if only a page links to it; family: "edm", "score_sde" or "adm";
    licence: of the weights; where: the page or folder, for manual download.
    """

    file: str
    url: str | None
    family: str
    licence: str
    where: str


def kept_at(name: str) -> str:
    """The path, in a project, of the published file with this name in the catalogue."""
    return f"downloads/pretrained/{name}.{PUBLISHED[name].file.rpartition('.')[2]}"


def _edm(name: str, folder: str = "", origin: str = "") -> Published:
    licence = f"{_NVIDIA}; {origin}" if origin else _NVIDIA
    return Published(f"{name}.pkl", f"{_EDM}{folder}{name}.pkl", "edm", licence, _EDM + folder)


def _score_sde(folder: str, file: str) -> Published:
    return Published(file, None, "score_sde", "Apache-2.0", f"{_SCORE_SDE}, folder {folder}, file {file}")


_SONG = "derived from Song et al., Apache-2.0"
_DHARIWAL = "derived from Dhariwal and Nichol, MIT"

#: Name in params.yaml → file.
PUBLISHED: dict[str, Published] = {
    **{
        f"edm-{dataset}-{network}": _edm(f"edm-{dataset}-{network}")
        for dataset in ("cifar10-32x32-cond", "cifar10-32x32-uncond", "ffhq-64x64-uncond", "afhqv2-64x64-uncond")
        for network in ("vp", "ve")
    },
    "edm-imagenet-64x64-cond-adm": _edm("edm-imagenet-64x64-cond-adm"),
    "baseline-cifar10-32x32-uncond-vp": _edm("baseline-cifar10-32x32-uncond-vp", "baseline/", _SONG),
    "baseline-cifar10-32x32-uncond-ve": _edm("baseline-cifar10-32x32-uncond-ve", "baseline/", _SONG),
    "baseline-imagenet-64x64-cond-adm": _edm("baseline-imagenet-64x64-cond-adm", "baseline/", _DHARIWAL),
    "score_sde-cifar10-32x32-uncond-vp": _score_sde("vp/cifar10_ddpmpp_continuous", "checkpoint_8.pth"),
    "score_sde-cifar10-32x32-uncond-ve": _score_sde("ve/cifar10_ncsnpp_continuous", "checkpoint_24.pth"),
    "adm-imagenet-64x64-cond": Published(
        "64x64_diffusion.pt", f"{_ADM}64x64_diffusion.pt", "adm", "MIT", "https://github.com/openai/guided-diffusion"
    ),
}
