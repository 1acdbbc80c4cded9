"""What tests of own rows share: pictures, and the files that hold rows about them."""

import io
import json
import zlib
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from fedvlm_secure.data.rows import COLUMNS, FEATURES

PUBLISHED = datasets.Features({name: FEATURES[name] for name in COLUMNS})


def picture(shade: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A few bytes that say they are so many pixels wide and high."""
    start = picture(0)
    header = b"IHDR" + side.to_bytes(4) * 2 + start[24:29]
    return start[:12] + header + zlib.crc32(header).to_bytes(4) + start[33:]


def published(number: int, **other: object) -> dict[str, object]:
    """A row as RLAIF-V publishes it; rows 2 n and 2 n + 1 are about one picture."""
    kind = ("question answering", "detailed description")[number % 2]
    row = {
        "ds_name": "RLAIF-V",
        "image": {"bytes": picture(number // 2 % 256), "path": f"{number // 2}.jpg"},
        "question": f"What is {number}?",
        "chosen": f"It is {number % 3}.",
        "rejected": "I cannot tell.",
        "origin_dataset": ("MSCOCO", "VQA v2", "Google Landmark")[number // 2 % 3],
        "origin_split": json.dumps({"model": "some-model", "type": kind}),
        "idx": str(number),
        "image_path": f"coco/{number // 2:06d}.jpg",
    }
    return row | other


def shard(file: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows as a published shard: its columns, their order and types, and the metadata that types the picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    datasets.Dataset.from_dict(columns, features=PUBLISHED).to_parquet(file)
    return file


def folder_of_pictures(folder: Path, count: int) -> Path:
    (folder / "scans").mkdir(parents=True)
    for number in range(count):
        (folder / "scans" / f"{number}.png").write_bytes(picture(number))
    return folder
