"""Pictures and films: pixels equal Hugging Face's, and every file is right or one plain error."""

import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from audiosep_jax.encoders import pictures
from audiosep_jax.encoders.clip_image import ClipImageConfig
from audiosep_jax.errors import InputError

CASES = Path(__file__).resolve().parents[1] / "cases"
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None and os.environ.get("CI") != "true",
    reason="ffmpeg is not installed",
)


def picture(width, height, mode="RGB", seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height // 8 + 2, width // 8 + 2, channels)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    smooth = Image.fromarray(coarse.squeeze()).resize((width, height), Image.Resampling.BICUBIC)
    return smooth if smooth.mode == mode else smooth.convert(mode)


def read(path, region=None):
    """The only frame of a picture."""
    (frames,) = pictures.read(str(path), region)
    assert frames.dtype == np.uint8
    assert frames.shape == (1, 224, 224, 3)
    return frames[0]


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [
        (300, 517, "RGB"),
        (640, 480, "RGBA"),  # over white
        (224, 224, "L"),
        (100, 73, "RGB"),  # enlarged
        (1001, 333, "LA"),
        (225, 226, "P"),
        (330, 250, "CMYK"),
        (30, 2990, "RGB"),
    ],
)
def test_pixels_are_those_of_the_original_processor(width, height, mode):
    made = picture(width, height, mode)
    (expected_CHW,) = CLIPImageProcessorPil()(made, return_tensors="np")["pixel_values"]
    pixels_NHWC = ClipImageConfig().normalize(pictures.square(made)[None])
    assert pixels_NHWC.dtype == np.float32
    np.testing.assert_allclose(pixels_NHWC[0], expected_CHW.transpose(1, 2, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "webp", "avif", "jpg", "ppm"])
def test_a_file_equals_its_decoded_picture(tmp_path, suffix):
    picture(260, 240).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as decoded:
        expected = pictures.square(decoded)
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), expected)


def test_a_region_is_the_cropped_file(tmp_path):
    whole = picture(400, 300)
    whole.save(tmp_path / "whole.png")
    whole.crop((40, 20, 340, 280)).save(tmp_path / "part.png")
    part = read(tmp_path / "whole.png", (40, 20, 300, 260))
    np.testing.assert_array_equal(part, read(tmp_path / "part.png"))
    for region in ((101, 0, 300, 300), (0, 0, 400, 301), (-1, 0, 9, 9), (0, 0, 9, 0)):
        with pytest.raises(InputError, match=r"whole\.png: region .* of 400 x 300 pixels"):
            pictures.read(str(tmp_path / "whole.png"), region)


@pytest.mark.parametrize("turn", range(2, 9))
def test_a_photograph_is_turned_as_a_viewer_turns_it(tmp_path, turn):
    upright, exif = picture(280, 250), Image.Exif()
    exif[0x0112] = turn
    steps = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270"
    stored = upright.transpose(Image.Transpose[steps.split()[turn - 2]])
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), pictures.square(upright))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_are_eight(tmp_path, suffix):
    grey = np.arange(300 * 300, dtype=np.uint16).reshape(300, 300) * 7 % 65521
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    expected = pictures.square(Image.fromarray((grey // 256).astype(np.uint8)))
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), expected)


def test_an_animation_is_its_first_picture(tmp_path):
    first, second = picture(240, 240, "P"), picture(240, 240, "P", seed=1)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    first.save(tmp_path / "first.gif")
    np.testing.assert_array_equal(read(tmp_path / "a.gif"), read(tmp_path / "first.gif"))


def png_of(width, height):
    """A PNG whose header promises a size; decoding it would take that much memory."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_bytes(tmp_path):
    picture(300, 300).save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


HOSTILE = [
    (png_of(100_000, 100_000), "has more than 89478485 pixels"),
    (png_of(10_000, 10_000), "has more than 89478485 pixels"),
    (png_of(1, 80_000), "1 x 80000 pixels are too elongated"),
    (png_of(300, 300), "cannot be read as a picture"),
    (b"a text file, not a picture", "cannot be read as a picture or a film"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as a picture or a film"),
    (b"ffconcat version 1.0\nfile whole.jpg\n", "cannot be read as a picture or a film"),
    (b"<html>", "is a web page"),
    (b"", "is empty"),
]


@pytest.mark.parametrize(("content", "words"), HOSTILE)
def test_a_hostile_file_is_one_plain_error(tmp_path, recwarn, capfd, content, words):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.jpg: {words}") as failure:
        pictures.read(str(path))
    assert "\n" not in str(failure.value)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_photograph_is_refused(tmp_path, share):
    content = jpeg_bytes(tmp_path)
    (tmp_path / "a.jpg").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read as a picture \(.*[Tt]runcated"):
        pictures.read(str(tmp_path / "a.jpg"))


def test_what_has_no_defined_range_or_is_no_file_is_refused(tmp_path):
    for dtype in (np.float32, np.int32):
        Image.fromarray(np.zeros((9, 9), dtype)).save(tmp_path / "a.tif")
        with pytest.raises(InputError, match="has one number of 32 bits a pixel"):
            pictures.read(str(tmp_path / "a.tif"))
    for path, words in ((tmp_path, "is not a file"), (tmp_path / "no.png", "no such file")):
        with pytest.raises(InputError, match=words):
            pictures.read(str(path))


@needs_ffmpeg
def test_a_film_is_a_frame_a_second(tmp_path):
    """Each second gives the picture that is shown at its start: 2.25 s of four a second."""
    frames = [picture(260, 240, seed=number) for number in range(9)]
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    command = ["ffmpeg", "-v", "error", "-framerate", "4", "-i", tmp_path / "%d.png"]
    film = tmp_path / "film.mkv"
    subprocess.run([*command, "-c:v", "ffv1", "-pix_fmt", "gbrp", film], check=True)
    (found,) = pictures.read(str(film))
    expected = np.stack([pictures.square(frame) for frame in frames[::4]])
    np.testing.assert_array_equal(found, expected)
    (part,) = pictures.read(str(film), (10, 0, 230, 240))
    np.testing.assert_array_equal(part[2], pictures.square(frames[8].crop((10, 0, 240, 240))))
    with pytest.raises(InputError, match="of 260 x 240 pixels"):
        pictures.read(str(film), (0, 0, 261, 240))


@needs_ffmpeg
def test_a_film_without_pictures_is_refused():
    with pytest.raises(InputError, match="cannot be read as a picture or a film"):
        pictures.read(str(CASES / "sox.mp3"))


def test_a_film_needs_ffmpeg(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="films need ffmpeg"):
        pictures.read(str(CASES / "mute_film.mp4"))
