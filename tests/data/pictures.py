"""Images for tests, made on the spot."""

import base64
import io

from PIL import Image


def picture(size: tuple[int, int] = (8, 6), colour: str = "red", form: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    mode = options.pop("mode", "RGB")
    Image.new(mode, size, colour).save(file, form, **options)
    return file.getvalue()


def turned(size: tuple[int, int] = (8, 6)) -> bytes:
    """A photograph that is stored lying on its side: a camera held upright writes it so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(size, form="JPEG", exif=exif)


def data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def bomb() -> bytes:
    """A small file that says it is huge."""
    content = bytearray(picture())
    content[16:24] = (60_000).to_bytes(4) + (60_000).to_bytes(4)
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4)
    return bytes(content)
