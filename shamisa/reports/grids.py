"""Grids of images with titles."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

MARGIN, LINE = 4, 12  # pixels: between tiles, height of a line of text


def crop_centre(photo: Tensor, size: int) -> Tensor:
    """The central size x size square of a photograph [3, H, W], smaller where the photograph is."""
    top, left = (max(0, (n - size) // 2) for n in photo.shape[1:])
    return photo[:, top : top + size, left : left + size].contiguous()


def draw_grid(rows: list[tuple[str, list[tuple[str, Tensor]]]]) -> Image.Image:
    """Rows of (title, [(caption, uint8 [3, H, W]), ...]) -> one picture; captions may have several lines."""
    lines = max(caption.count("\n") + 1 for _, tiles in rows for caption, _ in tiles)
    height, width = rows[0][1][0][1].shape[1:]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text = max(measure.multiline_textbbox((0, 0), c, spacing=0)[2] for _, tiles in rows for c, _ in tiles)
    dx, dy = max(width, int(text)) + MARGIN, height + MARGIN + LINE * lines
    columns = max(len(tiles) for _, tiles in rows)
    title_height = LINE + MARGIN
    sheet = Image.new("RGB", (columns * dx + MARGIN, len(rows) * (dy + title_height) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for r, (title, tiles) in enumerate(rows):
        top = MARGIN + r * (dy + title_height)
        pen.text((MARGIN, top), title, fill="black")
        for c, (caption, image) in enumerate(tiles):
            left = MARGIN + c * dx
            sheet.paste(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()), (left, top + title_height))
            pen.multiline_text((left, top + title_height + height), caption, fill="gray", spacing=0)
    return sheet
