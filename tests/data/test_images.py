"""Images and videos: decoded as they look, and refused when damaged or too large."""

import io
import struct
import zlib

import numpy as np
import pytest
from data_files import noisy, png
from PIL import Image

from mmfast.data import ColumnSpec, Table, read_cell
from mmfast.data.files import Unreadable
from mmfast.data.images import Frames, decode_animation, decode_image, natural

RED = (255, 0, 0)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animation(kind, count=3, size=(6, 5), **options):
    frames = [Image.new("RGB", size, (80 * n, 0, 0)) for n in range(count)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


def video(cell, base):
    return read_cell(Table({"x": [cell]}, base=base), 0, ColumnSpec("x", "video"))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG", "PPM"])
def test_formats(kind):
    image = decode_image(png(RED, kind=kind))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert np.abs(np.array(image).astype(int) - RED).max() <= 3


def test_noise_comes_back_exactly():
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert (np.array(decode_image(noisy(seed=1))) == pixels).all()


def test_transparent_is_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 255))
    assert list(decode_image(saved(image)).get_flattened_data()) == [(255,) * 3, (0, 0, 255)]


def test_a_transparent_palette_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = decode_image(saved(image, transparency=0)).get_flattened_data()
    assert list(pixels) == [(255, 255, 255), (0, 0, 255)]


def test_sixteen_bits_are_scaled():
    grey = np.array([[0, 256 * 7, 65535]], dtype=np.uint16)
    image = decode_image(saved(Image.fromarray(grey)))
    assert [pixel[0] for pixel in image.get_flattened_data()] == [0, 7, 255]


def test_grey_and_bilevel():
    assert decode_image(saved(Image.new("L", (1, 1), 90))).getpixel((0, 0)) == (90, 90, 90)
    assert decode_image(saved(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_photos_are_upright():
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 20, 20))  # its left half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is left belongs on top
    upright = decode_image(saved(image, "JPEG", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] < 50 < 200 < upright.getpixel((10, 35))[0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_truncated(kind, share):
    data = noisy(kind=kind)
    with pytest.raises(Unreadable, match=r"is no readable image: ."):
        decode_image(data[: int(len(data) * share)])


def test_a_flipped_bit_never_changes_an_image_unnoticed():
    good = noisy((16, 12))
    pixels = np.array(decode_image(good))
    refused = 0
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 1
        try:
            assert (np.array(decode_image(bytes(data))) == pixels).all()
        except Unreadable:
            refused += 1
    assert refused > 0.9 * len(good)


@pytest.mark.parametrize("data", [b"", b"text, no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_no_image(data):
    with pytest.raises(Unreadable, match=r"is no readable image: (?!.*BytesIO)"):
        decode_image(data)


def huge_png(width, height):
    """A PNG of a few bytes that declares any size."""

    def chunk(name, body):
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 60_000, 2_000_000_000])
def test_declared_sizes_are_checked_before_decoding(side):
    with pytest.raises(Unreadable, match=r"declares \d+ x \d+ pixels|decompression bomb|exceeds"):
        decode_image(huge_png(side, side))


def test_postscript_is_not_run():
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(data)).format == "EPS"
    with pytest.raises(Unreadable, match="its format is not known"):
        decode_image(data)


def test_floating_point_pixels():
    with pytest.raises(Unreadable, match="has floating-point pixels"):
        decode_image(saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / f"a.{kind.lower()}").write_bytes(animation(kind, **options))
    frames = video(f"a.{kind.lower()}", tmp_path)
    assert [frame.getpixel((2, 2)) for frame in frames] == [(0, 0, 0), (80, 0, 0), (160, 0, 0)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_truncated_animations(kind):
    frames = [Image.open(io.BytesIO(noisy(seed=seed))) for seed in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    with pytest.raises(Unreadable, match=r"is no readable animation: "):
        decode_animation(data[: len(data) // 2])


def test_an_animation_with_too_many_pixels(monkeypatch):
    monkeypatch.setattr("mmfast.data.images.MAX_VIDEO_PIXELS", 6 * 5 * 3)
    monkeypatch.setattr("mmfast.data.images._LEAST_FRAME", 1)
    assert len(decode_animation(animation("GIF", 3))) == 3
    with pytest.raises(Unreadable, match="has more than 3 frames of 6 x 5"):
        decode_animation(animation("GIF", 4))


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip").mkdir()
    for number in (10, 2, 1):
        (tmp_path / "clip" / f"frame{number}.png").write_bytes(png((number, 0, 0)))
    (tmp_path / "clip" / "notes.txt").write_text("no frame")
    return tmp_path


def test_a_folder_of_frames_in_natural_order(clip):
    frames = video("clip", clip)
    assert isinstance(frames, Frames)
    assert [frame.getpixel((0, 0))[0] for frame in frames] == [1, 2, 10]
    assert len(frames[1:]) == 2
    assert frames[-1].getpixel((0, 0)) == frames[1:][1].getpixel((0, 0)) == (10, 0, 0)


def test_frames_are_decoded_when_asked_for(clip):
    (clip / "clip" / "frame2.png").write_bytes(b"damaged")
    frames = video("clip", clip)
    assert frames[2].size == (5, 4)
    with pytest.raises(Unreadable, match=r"frame clip/frame2\.png is no readable image"):
        frames[1]


@pytest.mark.parametrize("as_list", [True, False])
def test_a_list_of_frames(clip, as_list):
    names = ["clip/frame10.png", "clip/frame2.png"]
    cell = names if as_list else '["clip/frame10.png", "clip/frame2.png"]'
    assert [frame.getpixel((0, 0))[0] for frame in video(cell, clip)] == [10, 2]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("empty", "holds no frames; they end in"),
        ("a.mp4", "videos are decoded beforehand"),
        ("[", "is no JSON list of paths"),
        ("[]", "the list of frames is empty"),
    ],
)
def test_no_video(tmp_path, cell, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"mp4")
    with pytest.raises(ValueError, match=message):
        video(cell, tmp_path)


def test_natural_order():
    names = ["f10", "f9", "f", "10", "9a", "9"]
    assert sorted(names, key=natural) == ["9", "9a", "10", "f", "f9", "f10"]
