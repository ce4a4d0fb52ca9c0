"""Every kind of file that goes wrong, with what becomes of it.

F is refused as a whole, R is refused for one record, W is accepted and counted, A is accepted.
"""

import gzip
import json
import os
import pickle
import socket
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.data.pair_files import GOOD, array_of, lines_of

_LINE = json.dumps(GOOD).encode()
_THREE = lines_of([GOOD] * 3)
_MANY = lines_of([{**GOOD, "n": n, "chosen": f"It is {n * n}."} for n in range(3000)])
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
_PACKED = gzip.compress(_MANY)
_FLIPPED = _PACKED[:5000] + bytes([_PACKED[5000] ^ 255]) + _PACKED[5001:]
_FRAMES = zstandard.ZstdCompressor(write_checksum=True).compress(_MANY)


@dataclass(frozen=True)
class FileKind:
    """A file that goes wrong.

    Attributes:
        outcome: F, R, W or A.
        name: the file's name.
        make: its bytes, or what makes it at a path.
        said: what the message says (F, R) or the warning (W).
    """

    outcome: Literal["F", "R", "W", "A"]
    name: str
    make: bytes | Callable[[Path], object]
    said: str = ""

    def at(self, folder: Path) -> str:
        """Make it and return its path."""
        path = folder / self.name
        if isinstance(self.make, bytes):
            path.write_bytes(self.make)
        else:
            self.make(path)
        return str(path)


def _bind_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the path of a socket may be no longer than 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def _folder_with(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_text("nothing")

    return make


def _folder_with_a_pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "a.jsonl")


def _cut_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([GOOD] * 3), path)
    path.write_bytes(path.read_bytes()[:-5])


def _parquet_with_two_chosen(path: Path) -> None:
    columns = [pa.array([text]) for text in ("p", "c", "r", "d")]
    pq.write_table(pa.Table.from_arrays(columns, ["prompt", "chosen", "rejected", "chosen"]), path)


def _parquet_with_a_far_date(path: Path) -> None:
    far = pa.array([2**40], pa.timestamp("s"))
    pq.write_table(pa.table({**{key: [text] for key, text in GOOD.items()}, "when": far}), path)


def _safetensors(path: Path) -> None:
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "pairs.jsonl")


def _bomb(start: bytes, filling: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(gzip.compress(start) + 20 * gzip.compress(filling * 2**24, 1))


def _long_record(start: bytes, end: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(start + b'{"prompt": "' + b"a" * (33 * 2**20) + b'"}' + end)


FILES = {
    "empty": FileKind("F", "a.jsonl", b"", "holds no records: it is empty"),
    "empty (a list)": FileKind("F", "a.json", b"[]", "holds no records"),
    "empty (CSV)": FileKind("F", "a.csv", b"", "holds no records"),
    "only newlines": FileKind("F", "a.jsonl", b"\n\n\r\n", "holds no records"),
    "only newlines (and a mark)": FileKind("F", "a.jsonl", b"\xef\xbb\xbf", "holds no records"),
    "blank lines between": FileKind("A", "a.jsonl", _THREE.replace(b"\n", b"\n\n \t\r\n")),
    "no final newline": FileKind("A", "a.jsonl", _THREE.rstrip()),
    "last record cut": FileKind("R", "a.jsonl", _THREE[:-10], "the record is cut off"),
    "last record cut (in a list)": FileKind("R", "a.json", array_of([GOOD] * 3)[:-10], "the record is cut off"),
    "last record cut (behind its comma)": FileKind("R", "a.json", array_of([GOOD] * 3)[:-1] + b", ", "does not end"),
    "last record cut (behind it)": FileKind("R", "a.json", array_of([GOOD] * 3)[:-1], "the list is cut off behind"),
    "BOM": FileKind("A", "a.jsonl", b"\xef\xbb\xbf" + _THREE),
    "BOM (in front of a list)": FileKind("A", "a.json", b"\xef\xbb\xbf" + array_of([GOOD] * 3)),
    "CRLF": FileKind("A", "a.jsonl", _THREE.replace(b"\n", b"\r\n")),
    "UTF-16": FileKind("F", "a.jsonl", json.dumps(GOOD).encode("utf-16"), "UTF-16"),
    "UTF-16 (little endian, no mark)": FileKind("F", "a.jsonl", json.dumps(GOOD).encode("utf-16-le"), "UTF-16"),
    "UTF-16 (big endian, no mark)": FileKind("F", "a.jsonl", json.dumps(GOOD).encode("utf-16-be"), "UTF-16"),
    "zero bytes": FileKind("F", "a.jsonl", bytes(5000), "filled with zero bytes"),
    "CSV named .jsonl": FileKind("F", "a.jsonl", b"prompt,chosen,rejected\na,b,c\n", "looks like a table (CSV)"),
    "CSV named .jsonl (tabs)": FileKind("F", "a.jsonl", b"prompt\tchosen\trejected\na\tb\tc\n", "split by tabs"),
    "HTML named .jsonl": FileKind("F", "a.jsonl", b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
    "LFS pointer named .jsonl": FileKind("F", "a.jsonl", _POINTER, "pointer of Git LFS"),
    "prose named .jsonl": FileKind("F", "a.jsonl", b"# Notes\n\nThis is a text.\n", "it begins with '# Notes'"),
    "zip named .jsonl": FileKind("F", "a.jsonl", b"PK\x03\x04rest", "a zip archive"),
    "zip with a sheet": FileKind("F", "a.xlsx", b"PK\x03\x04....[Content_Types].xml", "an Excel sheet (.xlsx)"),
    "zip with weights": FileKind("F", "a.bin", b"PK\x03\x04....archive/data.pkl", "model weights (PyTorch)"),
    "weights named .json": FileKind("F", "a.json", _safetensors, "model weights (safetensors)"),
    "weights (GGUF)": FileKind("F", "a.gguf", b"GGUF\x03\0\0\0", "model weights (GGUF)"),
    "pickle": FileKind("F", "a.jsonl", pickle.dumps([GOOD]), "a pickle of Python"),
    "tar": FileKind("F", "a.jsonl", _tar, "a tar archive"),
    "image": FileKind("F", "a.jsonl", b"\x89PNG\r\n\x1a\n", "is an image"),
    "recipe": FileKind("F", "a.yaml", b"name: a\nmodel:\n  path: m\ndata:\n  train: t\n", "is a recipe, and"),
    "YAML": FileKind("F", "a.json", b"- prompt: a\n  chosen: b\n  rejected: c\n", "looks like YAML"),
    "LFS pointer named .parquet": FileKind("F", "a.parquet", _POINTER, "pointer of Git LFS"),
    "xz": FileKind("F", "a.jsonl.xz", b"\xfd7zXZ\x00rest", "an xz file"),
    "two objects without a comma in a list": FileKind(
        "F", "a.json", b"[" + _LINE + b" " + _LINE + b"]", "no comma behind the record"
    ),
    "one object cut in a list": FileKind(
        "F", "a.json", b", ".join([b"[" + _LINE, _LINE[:-10], _LINE, _LINE + b"]"]), "the next record cannot be found"
    ),
    "text behind a list": FileKind("F", "a.json", b"[" + _LINE + b"]" + _LINE, "more text behind the end of the list"),
    '{"data": [...]}': FileKind("F", "a.json", json.dumps({"data": [GOOD]}).encode(), "holds its records under 'data'"),
    '{"data": [...]} (indented)': FileKind(
        "F", "a.json", json.dumps({"data": [GOOD]}, indent=1).encode(), "holds its records under 'data'"
    ),
    "one object over several lines": FileKind(
        "F", "a.json", json.dumps(GOOD, indent=1).encode(), "JSON objects over several lines"
    ),
    "JSON array": FileKind("A", "a.json", array_of([GOOD] * 3)),
    "gz": FileKind("A", "a.jsonl.gz", gzip.compress(_THREE)),
    "gz cut": FileKind("F", "a.jsonl.gz", _PACKED[: len(_PACKED) // 2], "damaged gzip file: it ends in the middle"),
    "gz cut (in its check)": FileKind("F", "a.jsonl.gz", _PACKED[:-3], "damaged gzip file: it ends in the middle"),
    "gz CRC error": FileKind("F", "a.jsonl.gz", _PACKED[:-8] + bytes(4) + _PACKED[-4:], "damaged gzip file"),
    "gz with a byte flipped": FileKind("F", "a.jsonl.gz", _FLIPPED, "damaged gzip file"),
    "zst cut": FileKind("F", "a.jsonl.zst", _FRAMES[: len(_FRAMES) // 2], "damaged zstd file: it ends in the middle"),
    "zst with another checksum": FileKind(
        "F", "a.jsonl.zst", _FRAMES[:-1] + bytes([_FRAMES[-1] ^ 1]), "damaged zstd file"
    ),
    "gz with a tail": FileKind("F", "a.jsonl.gz", _PACKED + b"tail", "damaged gzip file"),
    "plain file named gz": FileKind("W", "a.jsonl.gz", _THREE, "is named .gz and is not compressed"),
    "gz bomb (a line)": FileKind("F", "a.jsonl.gz", _bomb(b'{"prompt": "', b"a"), "a record of more than 32 MiB"),
    "gz bomb (blank lines)": FileKind("F", "a.jsonl.gz", _bomb(_LINE + b"\n", b"\n"), "unpacks to more than"),
    "Parquet cut": FileKind("F", "a.parquet", _cut_parquet, "is not a whole Parquet file"),
    "Parquet cut (to its name)": FileKind("F", "a.parquet", b"PAR1" + bytes(200), "is not a whole Parquet file"),
    "Parquet by name only": FileKind("F", "a.parquet", b"nothing of the kind", "is not a Parquet file"),
    "Parquet with a column twice": FileKind("F", "a.parquet", _parquet_with_two_chosen, "two columns are named 'ch"),
    "Parquet with a date that Python has not": FileKind(
        "F", "a.parquet", _parquet_with_a_far_date, "holds a value that cannot be read"
    ),
    "Arrow cut": FileKind("F", "a.arrow", b"ARROW1" + bytes(200), "is not a whole Arrow file"),
    "folder without data": FileKind("F", "folder", _folder_with("notes.md"), "is a folder without data files"),
    "FIFO": FileKind("F", "pipe.jsonl", os.mkfifo, "is a pipe"),
    "FIFO (in a folder)": FileKind("F", "folder", _folder_with_a_pipe, "is a pipe"),
    "socket": FileKind("F", "sock.jsonl", _bind_socket, "is a socket"),
    "symlink loop": FileKind("F", "loop.jsonl", lambda path: path.symlink_to(path), "leads back to itself"),
    "dangling": FileKind("F", "gone.jsonl", lambda path: path.symlink_to(path.parent / "no"), "does not exist"),
    "missing": FileKind("F", "none.jsonl", lambda _: None, "does not exist"),
    "a record over the size limit": FileKind(
        "F", "a.jsonl", _long_record(b"", b"\n" + _LINE), "a record of more than 32 MiB"
    ),
    "a record over the size limit (in a list)": FileKind(
        "F", "a.json", _long_record(b"[", b"]"), "a record of more than 32 MiB"
    ),
}
