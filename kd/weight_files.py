"""Files of weights are held against their own size before a library reads them: they may come from anybody.

A safetensors file says in its header what follows, a `.pt` file is a ZIP archive around a pickle. Both can promise
terabytes in a few bytes, and a pickle can also compute them.
"""

import json
import math
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from kd.errors import StoreError

HEADER_BYTES = 16 * 2**20  # a network of 10,000 tensors has a header of 1 MB
PICKLE_BYTES = 64 * 2**20  # without the tensors, which lie beside it
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
#: what the pickle of a state_dict names; `torch.load(weights_only=True)` also calls some that take memory at will
NAMED = (
    "collections OrderedDict", "torch Size", "torch device", "torch.nn.parameter Parameter",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter", "torch.storage UntypedStorage", "torch.serialization _get_layout",
)  # fmt: skip
DTYPES = ("float16", "float32", "float64", "bfloat16", "uint8", "int8", "int16", "int32", "int64", "bool")
SAFE = "safetensors file"
PICKLES = 5  # that a file of torch's old format begins with: magic, version, system, content, names of the tensors


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file, which is then safe to load; `__metadata__` is there, perhaps empty.

    Raises `StoreError` for a header that is no JSON object or too large, and for tensors that overlap, leave gaps, lie
    outside of the file, or are of another size than their shape and type make them.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, HEADER_BYTES):
            raise _damaged(path, f"its header is said to have {length:,} bytes, the file has {size:,}", SAFE)
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_repetition)
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        metadata = header.setdefault("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no texts")
        _check_places({name: one for name, one in header.items() if name != "__metadata__"}, size - 8 - length)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, str(error) or type(error).__name__, SAFE) from error
    return header


def check_torch_file(path: Path) -> None:
    """Raise `StoreError` for a `.pt` file that would take more memory than the file has bytes, or holds code."""
    with path.open("rb") as file:
        begins = file.read(2)
        if begins == b"PK":
            _check_archive(path)
        elif begins[:1] == b"\x80":
            file.seek(0)
            for _ in range(PICKLES):
                _check_pickle(path, file)
        else:
            raise _damaged(path, "it is neither what torch.save writes now nor what it wrote before")


def _check_places(tensors: dict[str, Any], available: int) -> None:
    """Raise an error unless the tensors fill the bytes that are available, each once."""
    places = []
    for name, one in tensors.items():
        begin, end = one["data_offsets"]
        shape = one["shape"]
        if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
            raise ValueError(f"{name!r:.80} has a place or a shape that is not of whole numbers")
        if one["dtype"] not in ITEM_BITS:
            raise ValueError(f"{name!r:.80} is of an unknown type, {one['dtype']!r:.20}")
        if len(shape) > 64 or 8 * (end - begin) != math.prod(shape) * ITEM_BITS[one["dtype"]]:
            raise ValueError(f"{name!r:.80} has {end - begin:,} bytes, which is not what its shape and type take")
        places.append((begin, end))
    reached = 0
    for begin, end in sorted(places):
        if begin != reached:
            raise ValueError("its tensors overlap or leave gaps")
        reached = end
    if reached != available:
        raise ValueError(f"its tensors take {reached:,} bytes, the file has {available:,} for them")


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise _damaged(path, "its members are compressed, which torch.save never does")
            total = sum(max(member.file_size, member.compress_size) for member in members)
            if total > path.stat().st_size:
                raise _damaged(path, f"its members are said to have {total:,} bytes, more than the file")
            names = [member.filename.lower() for member in members]  # torch takes DATA.PKL for data.pkl
            if len(set(names)) < len(names):
                raise _damaged(path, "it has a member twice")
            pickles = [member for member in members if member.filename.lower().endswith(".pkl")]
            if not pickles:
                raise _damaged(path, "it has no data.pkl")
            for member in pickles:
                with archive.open(member) as file:
                    _check_pickle(path, file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise _damaged(path, str(error) or type(error).__name__) from error


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    """Read one pickle's instructions, without following them, and hold what they name against the list."""
    begun = file.tell()
    try:
        for opcode, argument, place in pickletools.genops(file):
            if (place or 0) - begun > PICKLE_BYTES:
                raise _damaged(path, "its pickle is too large for one that holds no tensors")
            if opcode.name in ("GLOBAL", "INST"):
                _check_named(path, str(argument))
            elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):  # of newer protocols than torch.save writes
                _check_named(path, f"pickle {opcode.name}")
    except (ValueError, IndexError, OverflowError, MemoryError, EOFError) as error:
        if isinstance(error, StoreError):
            raise
        raise _damaged(path, str(error) or type(error).__name__) from error


def _check_named(path: Path, name: str) -> None:
    module, _, last = name.partition(" ")
    storage = module in ("torch", "torch.cuda") and last.endswith("Storage")
    if name not in NAMED and not storage and not (module == "torch" and last in DTYPES):
        raise StoreError(
            f"{path} holds more than weights ({name.replace(' ', '.'):.80}), or is damaged, and was not loaded: "
            "unpickling it could execute code or fill the memory. Save the network's state_dict alone, best as "
            ".safetensors (safetensors.torch.save_file)."
        )


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _damaged(path: Path, why: str, kind: str = "file of weights") -> StoreError:
    return StoreError(f"{path} is damaged or no {kind}: {why.splitlines()[0]}.")
