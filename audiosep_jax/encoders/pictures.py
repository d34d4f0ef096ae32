"""Pictures and films as queries: decoded, and cropped to the square that CLIP's tower sees."""

import contextlib
import os
import shutil
import subprocess
import warnings
from collections.abc import Generator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from audiosep_jax.audio.decoding import FFMPEG_INPUT, reason
from audiosep_jax.errors import InputError
from audiosep_jax.files import not_the_file

SIZE = 224  # pixels on a side of the square, as in nearly all published CLIPs
MOST_ELONGATED = 100  # longer side over shorter side; scaling would make more of it enormous
MOST_SECONDS = 600  # of a film
# Pillow knows more formats. Some of them start other programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_NO_PICTURE = "cannot be read as a picture or a film"

Region = tuple[int, int, int, int]  # left, top, width, height in pixels


def read(path: str, region: Region | None = None, *, films: bool = True) -> list[np.ndarray]:
    """Read one query, a picture or a film: squares `(frames, SIZE, SIZE, 3)` uint8.

    A film gives one frame a second, from its start. An animation gives its first frame. Decoding a
    film may take minutes; without `films`, it is refused.

    Raises:
        InputError: nothing here can read the file, it is truncated or too large, or the region
            reaches out of it.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: {'is not a file' if os.path.exists(path) else 'no such file'}")
    try:
        picture = _opened(path)
        if picture is not None:
            return [square(picture, region)[None]]
        if not films:
            raise InputError(not_the_file(path) or "cannot be read as a picture")
        with contextlib.closing(_frames(path)) as frames:
            return [np.stack([square(frame, region) for frame in frames])]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def square(picture: Image.Image, region: Region | None = None) -> np.ndarray:
    """Crop as CLIP does: scale the shorter side to SIZE, take the middle; `(SIZE, SIZE, 3)` uint8.

    Transparent pixels show white.

    Args:
        picture: a picture of any size and mode.
        region: the only part of it that counts.
    """
    left, top, width, height = region or (0, 0, *picture.size)
    short = min(width, height)
    right, bottom = left + width, top + height
    if min(left, top, short - 1) < 0 or right > picture.width or bottom > picture.height:
        raise InputError(
            f"region {left},{top},{width},{height} is empty or reaches out of a picture of "
            f"{picture.width} x {picture.height} pixels"
        )
    if max(width, height) > MOST_ELONGATED * short:
        raise InputError(f"{width} x {height} pixels are too elongated, {MOST_ELONGATED}:1 or more")
    part = _rgb(picture.crop((left, top, right, bottom)))
    size = (SIZE * width // short, SIZE * height // short)
    scaled = part.resize(size, Image.Resampling.BICUBIC)
    left, top = (scaled.width - SIZE) // 2, (scaled.height - SIZE) // 2
    return np.asarray(scaled.crop((left, top, left + SIZE, top + SIZE)))


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F"):
        raise InputError("has one number of 32 bits a pixel; save it with 8 or 16 bits")
    if picture.mode.startswith("I;16"):  # Pillow would clip it
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _opened(path: str) -> Image.Image | None:
    """Return a picture as a viewer would turn it; None if the file is of another kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=FORMATS) as picture:
                return ImageOps.exif_transpose(picture)
        except UnidentifiedImageError:
            return None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InputError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
        except Exception as error:  # the decoders' own errors have no base class
            raise InputError(f"cannot be read as a picture ({reason(error)})") from error


def _frames(path: str) -> Generator[Image.Image]:
    """Yield one frame a second of a film."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise InputError(f"{not_the_file(path) or _NO_PICTURE}; films need ffmpeg")
    options = [*FFMPEG_INPUT, "-max_pixels", str(Image.MAX_IMAGE_PIXELS), "-t", str(MOST_SECONDS)]
    # Rounded up, so that the picture of a second is the one that is shown at its start.
    output = ["-map", "0:v:0", "-vf", "fps=1:round=up", "-pix_fmt", "rgb24"]
    output += ["-c:v", "ppm", "-f", "image2pipe", "-"]
    command = [program, *options, "-i", f"file:{Path(path).absolute()}", *output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while process.stdout.readline():  # "P6", then a line of width and height, then "255"
            width, height = map(int, process.stdout.readline().split())
            process.stdout.readline()
            content = process.stdout.read(3 * width * height)
            yield Image.frombytes("RGB", (width, height), content)
    if process.returncode:
        raise InputError(not_the_file(path) or _NO_PICTURE)
