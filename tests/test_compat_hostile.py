"""Published checkpoints that are hostile, damaged or cut off are refused with a sentence; nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from published_standins import checkpoint, installed, write_2018

from svg_fast import SVG
from svg_fast.compat import PublishedCheckpointError, load_published, read_options

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # torch, of the stand-ins


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed(monkeypatch, nf=1):
        yield


def write_old(tree: Any, path: Path) -> None:
    torch.save(tree, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Any, Path], None]] = {"zip": torch.save, "old": write_old}


def small(**options: Any) -> dict[str, Any]:
    return checkpoint("det", nf=1, dtype=torch.float32, g_dim=2, rnn_size=2, predictor_rnn_layers=1, **options)


def around(program: bytes, keys: bytes = b"].") -> bytes:
    """A file of the old format, without tensors, around a pickle and that of its storages' keys."""
    header = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(value, 2) for value in header) + program + keys


def refused(path: Path, message: str) -> None:
    for function in (load_published, read_options):
        with pytest.raises(PublishedCheckpointError, match=message) as caught:
            function(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


class Runs:
    """An object whose unpickling runs a command that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def _in_module(tree: dict[str, Any], evil: Any) -> Any:
    tree["encoder"].c1.main[0].padding_mode = evil
    return tree


def _as_module(tree: dict[str, Any], evil: Any) -> Any:
    tree["encoder"]._modules["c1"] = evil
    return tree


def _in_options(tree: dict[str, Any], evil: Any) -> Any:
    tree["opt"].log_dir = evil
    return tree


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "place",
    [
        lambda tree, evil: evil,
        lambda tree, evil: {**tree, "prior": evil},
        lambda tree, evil: {**tree, "more": [evil]},
        _in_module,
        _as_module,
        _in_options,
    ],
    ids=["file", "net", "more", "attribute", "module", "opt"],
)
def test_a_command_anywhere(tmp_path: Path, writer: str, place: Callable[[Any, Any], Any]) -> None:
    marker = tmp_path / "marker"
    WRITERS[writer](place(small(), Runs(marker)), tmp_path / "model.pth")
    refused(tmp_path / "model.pth", r"names \w+\.system, which a checkpoint has no use for: refused, nothing was run$")
    assert not marker.exists()


PROGRAMS = {
    "os.system": b"\x80\x02cos\nsystem\n(S'touch marker'\ntR.",
    "models.dcgan_64.anything": b"\x80\x02cmodels.dcgan_64\nanything\n.",
    "models.evil.encoder": b"\x80\x02cmodels.evil\nencoder\n.",
    "builtins.getattr": b"\x80\x02c__builtin__\ngetattr\n(ctorch\nSize\nX\x08\x00\x00\x00__init__tR.",
    "builtins.eval": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    "torch.hub.load": b"\x80\x02(ctorch.hub\nload\nX\x01\x00\x00\x00xo.",
    "os.popen": b"\x80\x00(S'touch marker'\nios\npopen\n.",
    "subprocess.Popen": b"\x80\x02csubprocess\nPopen\n)\x81.",
    "codecs.encode": b"\x80\x02(X\x06\x00\x00\x00moduleccodecs\nencode\nX\x01\x00\x00\x00aX\x01\x00\x00\x00btQ.",
    "torch.nn.modules.conv.Conv2d.forward": b"\x80\x04\x8c\x15torch.nn.modules.conv\x8c\x0eConv2d.forward\x93.",
    "calls torch.optim.adam.Adam": b"\x80\x02ctorch.optim.adam\nAdam\n]\x85R.",
    "calls models.lstm.lstm": b"\x80\x02cmodels.lstm\nlstm\n(K\x01K\x01tR.",
    "calls argparse.Namespace": b"\x80\x02cargparse\nNamespace\n(K\x01tR.",
    "instruction EXT1": b"\x80\x02\x82\x01.",
    "instruction PERSID": b"Pos.system\n.",
    "instruction PUT": b"\x80\x02]p2305843009213693951\n.",
    "calls a function with 9 arguments": b"\x80\x02ctorch.nn.parameter\nParameter\n(" + b"N" * 9 + b"tR.",
    "calls what is not a function": b"\x80\x02K\x01)R.",
    "gives attributes to what is not a module": b"\x80\x02ctorch.nn.modules.conv\nConv2d\n}b.",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(around(PROGRAMS[name]))
    refused(path, name.replace(".", r"\."))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", PROGRAMS[name])
    refused(path, name.replace(".", r"\."))


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bystander.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "model.pth"
    path.write_bytes(around(b"\x80\x02cbystander\nvalue\n."))
    refused(path, r"names bystander\.value")
    torch.save(small(), path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        monkeypatch.delitem(sys.modules, name)
    load_published(path)
    assert not {"bystander", "models"} & sys.modules.keys()


@pytest.mark.parametrize("writer", [*WRITERS, "2018"])
def test_cut_off_anywhere(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "model.pth"
    {**WRITERS, "2018": write_2018}[writer](small(), path)
    data = path.read_bytes()
    load_published(path)
    for size in [*range(50), *range(1024, len(data), 1024), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(PublishedCheckpointError, match="truncated"):
            load_published(path)


@pytest.mark.parametrize("writer", [*WRITERS, "2018"])
def test_flipped_bytes(tmp_path: Path, writer: str) -> None:
    """A damaged file loads, where only a number of a tensor or an option changed, or is refused."""
    path = tmp_path / "model.pth"
    {**WRITERS, "2018": write_2018}[writer](small(), path)
    data = path.read_bytes()
    dice = random.Random(0)
    refusals = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.choice((1, 1, 4))):
            damaged[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(load_published(path), SVG)
        except PublishedCheckpointError:
            refusals += 1
    assert refusals > 20


def _storage(numel: int, kind: bytes = b"FloatStorage") -> bytes:
    """A persistent id: ("storage", torch.<kind>, "0", "cpu", numel, None)."""
    count = pickle.dumps(numel, 2)[2:-1]
    return b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"NtQ"


def _bomb(levels: int) -> bytes:
    """A tuple of two of the tuple of two of ...: small to hold, endless to walk."""
    return b"K\x01" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(levels))


# Long values are put into the memo once, and taken from there for many objects.
_ITEMS = b"".join(b"X\x03\x00\x00\x00%03xK\x01" % k for k in range(2**10))
_PAIRS = _ITEMS.replace(b"K\x01", b"K\x01\x86")
CLAIMS = {
    "one list, many dictionaries": (
        b"\x80\x02](" + _PAIRS + b"eq\x00ccollections\nOrderedDict\nq\x01(" + b"h\x01h\x00\x85R" * 2**13 + b"t."
    ),
    "one dictionary, many modules": (
        b"\x80\x02}(" + _ITEMS + b"uq\x00ctorch.nn.modules.conv\nConv2d\nq\x01(" + b"h\x01)\x81h\x00b" * 2**13 + b"t."
    ),
    "storage": b"\x80\x02" + _storage(2**40) + b".",
    "bytes": b"\x80\x02\x8e" + struct.pack("<Q", 2**40) + b".",
    "text": b"\x80\x02\x8d" + struct.pack("<Q", 2**62) + b".",
    "integer": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "memo": b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"].",
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_take_no_memory(tmp_path: Path, claim: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(around(CLAIMS[claim]))
    tracemalloc.start()
    try:
        refused(path, "truncated|does not|must hold|is not as long")
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "change",
    [{"size": 2**20, "stride": 0}, {"size": 0}, {"offset": -1}, {"offset": 10**9}, {"stride": 10**3000}, {"size": 1.5}],
    ids=["expanded", "empty", "before", "behind", "far", "fraction"],
)
def test_a_tensor_that_does_not_lie_in_its_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """The encoder's first weight, changed on its way into the file."""
    tree, plain = small(), torch.Tensor.__reduce_ex__
    address = tree["encoder"].c1.main[0].weight.data_ptr()

    def reduce(tensor: torch.Tensor, protocol: Any) -> Any:
        function, arguments = plain(tensor, protocol)
        if tensor.data_ptr() != address:
            return function, arguments
        storage, offset, size, stride, *rest = arguments
        size, stride = (tuple(change.get(key, n) for n in old) for key, old in (("size", size), ("stride", stride)))
        return function, (storage, change.get("offset", offset), size, stride, *rest)

    monkeypatch.setattr(torch.Tensor, "__reduce_ex__", reduce)
    torch.save(tree, tmp_path / "model.pth")
    with pytest.raises(PublishedCheckpointError, match="a tensor that does not lie in its storage"):
        load_published(tmp_path / "model.pth")


@pytest.mark.parametrize("writer", WRITERS)
def test_storages_longer_than_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    monkeypatch.setattr(torch.storage.TypedStorage, "_size", lambda self: 2**40)
    WRITERS[writer](small(), tmp_path / "model.pth")
    with pytest.raises(PublishedCheckpointError, match=r"not as long as it says|more elements than the file holds"):
        load_published(tmp_path / "model.pth")


@pytest.mark.parametrize("length", [4 * 64 * 64, 2**20])
def test_many_tensors_of_one_storage(tmp_path: Path, length: int) -> None:
    """A file may not be a small part of the model that it becomes, nor be read once for each of the model's tensors."""
    tree = checkpoint("lp", nf=1, dtype=torch.float32, rnn_size=64)
    nets = [net for net in tree.values() if isinstance(net, torch.nn.Module)]
    shared = torch.zeros(length)
    for parameter in (parameter for net in nets for parameter in net.parameters()):
        parameter.data = shared[: parameter.numel()].view(parameter.shape)
    torch.save(tree, tmp_path / "model.pth")
    with pytest.raises(PublishedCheckpointError, match="tensors in storages of more elements than the file holds"):
        load_published(tmp_path / "model.pth")


def test_small_programs_that_never_end(tmp_path: Path) -> None:
    path, bomb = tmp_path / "model.pth", _bomb(60)
    programs = {
        "keys that are not strings": b"}" + bomb + b"K\x01s.",
        "names what is not a name": bomb + bomb + b"\x93.",
        "must hold a dictionary": bomb + b".",
        "a storage without a type": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + bomb * 3 + b"NtQ.",
        "without a type, a key or a size": _storage(2**49) + b".",
        "a tensor without a storage": b"ctorch._utils\n_rebuild_tensor\n(" + bomb * 4 + b"tR.",
        "encoder must be a whole module": b"}X\x07\x00\x00\x00encoder" + bomb + b"s.",
    }
    for message, program in programs.items():
        path.write_bytes(around(b"\x80\x02" + program))
        refused(path, message)
    path.write_bytes(around(b"}.", keys=b"]" + bomb + b"a."))
    refused(path, "storages that are not named by strings")


def _nested(tree: dict[str, Any], depth: int) -> Any:
    module = tree["encoder"]
    for _ in range(depth):
        inner = torch.nn.Sequential()
        module._modules["c"] = inner
        module = inner
    return tree


def _cycle(tree: dict[str, Any]) -> Any:
    tree["encoder"].c1._modules["again"] = tree["encoder"]
    return tree


def test_modules_inside_themselves(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(_cycle(small()), path)
    with pytest.raises(PublishedCheckpointError, match="has more modules, or deeper ones, in its encoder"):
        load_published(path)
    torch.save(_nested(small(), 120), path)
    with pytest.raises(PublishedCheckpointError, match="has more modules, or deeper ones, in its encoder"):
        load_published(path)
    path.write_bytes(around(b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b"."))
    refused(path, "must hold a dictionary")


def test_a_pickle_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    for writer in WRITERS.values():
        writer(small(log_dir="x" * 2**22), path)
        refused(path, "has a pickle of more than 4 MiB")


def test_zip_members(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(small(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def rewrite(changed: str = "", new: bytes | None = None, method: int = zipfile.ZIP_STORED) -> None:
        """The same archive, the member of this name another or absent."""
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, old in members.items():
                data = new if Path(name).name == changed else old
                if data is not None:
                    archive.writestr(name, data)

    rewrite(method=zipfile.ZIP_DEFLATED)
    refused(path, "has a compressed member 'byteorder', torch.save compresses nothing")
    rewrite("byteorder", b"big")
    refused(path, "a machine with another byte order")
    rewrite("data.pkl")
    refused(path, "a zip archive that torch.save did not write")
    rewrite("3", b"short")
    with pytest.raises(PublishedCheckpointError, match=r"'data/3' is not as long as it says"):
        load_published(path)
    rewrite("3")
    with pytest.raises(PublishedCheckpointError, match=r"truncated, damaged or not.*model/data/3"):
        load_published(path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    for data in (b"", b"PK", b"PK\3\4", b"text\n", pickle.dumps({"encoder": 1}), bytes(range(256)) * 20, b"\x80" * 99):
        path.write_bytes(data)
        refused(path, "not a published checkpoint|not a checkpoint that torch.save wrote")
    buffer = io.BytesIO()
    torch.save({"state": torch.zeros(3)}, buffer)
    path.write_bytes(buffer.getvalue())
    refused(path, "not a published checkpoint: encoder must be a whole module")
    with pytest.raises(FileNotFoundError):
        load_published(tmp_path / "missing.pth")
