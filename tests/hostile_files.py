"""Files of weights that mean harm, made anew by every run of the tests: none lies about ready to be opened."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Writer = Callable[[Path], object]
HUGE = 2**50


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file with this header (or its text), and the length that it claims to have."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a header longer than the file": safetensors({}, length=100),
    "a header of 2^63 bytes": safetensors({}, length=2**63),
    "a header of 2^64 - 1 bytes": safetensors({}, length=2**64 - 1),
    "a header of a gigabyte of blanks": safetensors(b"{}" + b" " * (17 * 2**20)),
    "a header that is no object": safetensors([]),
    "a header that is no text": safetensors(b"\xff\xfe{}"),
    "a header 100,000 lists deep": safetensors(b"[" * 100_000),
    "metadata 100,000 objects deep": safetensors(b'{"__metadata__":' * 100_000),
    "metadata that are numbers": safetensors({"__metadata__": {"a": 1}}),
    "metadata that are no object": safetensors({"__metadata__": [1]}),
    "the same name twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "tensors that overlap": safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
    "tensors in the same place": safetensors({"a": tensor(0, 4, [1]), "b": tensor(0, 4, [1])}, bytes(4)),
    "a gap between tensors": safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12)),
    "bytes that belong to nobody": safetensors({"a": tensor(0, 4, [1])}, bytes(8)),
    "a tensor outside of the file": safetensors({"a": tensor(0, 4096, [1024])}, bytes(4)),
    "a tensor before the file": safetensors({"a": tensor(-4, 0, [1])}, bytes(4)),
    "a tensor that ends before it begins": safetensors({"a": tensor(4, 0, [1])}, bytes(4)),
    "a tensor of a petabyte": safetensors({"a": tensor(0, HUGE, [HUGE // 4])}, bytes(4)),
    "a shape whose size overflows": safetensors({"a": tensor(0, 4, [2**62, 2**62, 2])}, bytes(4)),
    "a negative size": safetensors({"a": tensor(0, 4, [-1, -1])}, bytes(4)),
    "a shape of fractions": safetensors({"a": tensor(0, 4, [0.5, 2])}, bytes(4)),
    "a shape of truths": safetensors({"a": tensor(0, 4, [True])}, bytes(4)),
    "a shape of a million dimensions": safetensors({"a": tensor(0, 4, [1] * 1_000_000)}, bytes(4)),
    "an unknown type": safetensors({"a": tensor(0, 4, [1], "PY_OBJECT")}, bytes(4)),
    "a type that is a list": safetensors({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "three offsets": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)),
    "no offsets": safetensors({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "no tensor": safetensors({"a": None}),
    "a number of 10,000 digits": safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b"]}}"),
    "a pickle": pickle.dumps({"a": 1}),
}


class Calls:
    """Unpickling this calls something."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.called = function, given

    def __reduce__(self) -> Any:
        return self.called


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """What torch.load takes for a file of torch.save's, with this pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        for name, content in members.items():
            file.writestr(f"archive/data/{name}", content)
    return made.getvalue()


def promised(size: int) -> bytes:
    """An archive whose directory promises a member of this size."""
    content = bytearray(archive(pickle.dumps(OrderedDict(), 2), a=b"1234"))
    place = content.rfind(b"PK\x01\x02")
    content[place + 20 : place + 28] = struct.pack("<II", size, size)
    return bytes(content)


def doubled(times: int) -> bytes:
    """A pickle that doubles a text by encoding it again and again: 2^times bytes."""
    made = b"\x80\x02X\x01\x00\x00\x00a"
    body = b""
    for _ in range(times):
        body += b"X\x03\x00\x00\x00hex\x86R"
    return made[:2] + b"c_codecs\nencode\n" * times + made[2:] + body + b"."


def saved(content: Any, *, old: bool = False) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, _use_new_zipfile_serialization=not old)
    return made.getvalue()


def compressed() -> bytes:
    """A gigabyte of zeros in a megabyte."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps(OrderedDict(), 2))
        with file.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(256):
                member.write(bytes(2**20))
    return made.getvalue()


def twice() -> bytes:
    """An archive with a harmless pickle and, under a name that torch takes for the same, another."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(OrderedDict(), 2))
        file.writestr("archive/DATA.PKL", pickle.dumps(Calls(bytearray, HUGE), 2))
    return made.getvalue()


def tar() -> bytes:
    import tarfile

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        member = tarfile.TarInfo("../../storages")
        member.size = 4
        file.addfile(member, io.BytesIO(b"1234"))
    return made.getvalue()


TORCH: dict[str, Callable[[], bytes]] = {
    "a call of os.system": lambda: saved({"a": Calls(os.system, "touch pwned")}),
    "a call of os.system, old": lambda: saved({"a": Calls(os.system, "touch pwned")}, old=True),
    "a call of eval in a bare pickle": lambda: pickle.dumps(Calls(eval, "open('pwned', 'w')"), 2),
    "a newer pickle": lambda: archive(pickle.dumps(Calls(os.system, "touch pwned"), 4)),
    "memory by a bytearray": lambda: archive(pickle.dumps(Calls(bytearray, HUGE), 2)),
    "memory by a bytearray, old": lambda: saved({"a": Calls(bytearray, HUGE)}, old=True),
    "memory by a tensor": lambda: archive(
        b"\x80\x02ctorch\nFloatTensor\n\x8a\x06" + HUGE.to_bytes(7, "little")[:6] + b"\x85R."
    ),
    "memory by doubling a text": lambda: archive(doubled(60)),
    "an archive that inflates": compressed,
    "an archive that promises gigabytes": lambda: promised(2**32 - 2),
    "a member twice": twice,
    "an archive that is cut off": lambda: saved({"a": torch.zeros(3)})[:-30],
    "an archive of nothing": lambda: b"PK\x05\x06" + bytes(18),
    "a tar archive with a path": tar,
    "bytes": lambda: bytes(range(256)),
    "empty": lambda: b"",
    "an endless pickle": lambda: b"\x80\x02" + b"(" * 100_000,
    "a text of 2^60 bytes in a pickle": lambda: archive(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc."),
}
