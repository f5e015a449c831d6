"""Two networks converted once, by the command itself, with every way to the network closed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from convert.__main__ import main
from convert.match import match
from firmware_ref.arch import Network
from firmware_ref.graph import Graph
from tests.convert.drafts import Draft
from tests.convert.members import REPORT, SMALL, Converted, device_network, save_checkpoint
from tests.convert.offline import offline
from train.qat import DeviceNetwork


def _convert(network: Network, folder: Path) -> Converted:
    """Convert ``network`` by the command, offline, and keep the graph that onnx2tf wrote."""
    checkpoint, bundle = folder / "qat.safetensors", folder / "bundle"
    save_checkpoint(network, checkpoint)
    seen: list[Graph] = []

    def keep(exported: Graph, *rest: Any) -> dict[int, int]:
        seen.append(exported)
        return match(exported, *rest)

    stdout, stderr = io.StringIO(), io.StringIO()
    arguments = ["--target", "tflite-micro", "--checkpoint", str(checkpoint), "--json"]
    with pytest.MonkeyPatch.context() as patch, offline(folder) as log:
        patch.setattr("convert.pipeline.match", keep)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main([*arguments, "--out", str(bundle)])
    assert code == 0, stderr.getvalue()
    texts = stdout.getvalue(), stderr.getvalue(), log.read_text()
    return Converted(checkpoint, bundle, code, *texts, *seen)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """``report-125k``, converted."""
    return _convert(REPORT, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The small member of the family, converted."""
    return _convert(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(params=["report", "small"])
def converted(request: pytest.FixtureRequest) -> Converted:
    """Each of the two in turn."""
    found: Converted = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def device() -> DeviceNetwork:
    """The small network in float."""
    return device_network(SMALL)


@pytest.fixture
def draft(device: DeviceNetwork) -> Draft:
    """Its graph as an exporter that changes nothing would write it."""
    return Draft.of(device)


@pytest.fixture(scope="session")
def tensorflow_schema() -> ModuleType:
    """TensorFlow's generated schema code, without the seconds that TensorFlow takes to load."""
    package = importlib.util.find_spec("tensorflow")
    assert package is not None and package.submodule_search_locations is not None
    (folder,) = package.submodule_search_locations
    path = Path(folder) / "lite" / "python" / "schema_py_generated.py"
    spec = importlib.util.spec_from_file_location("tensorflow_lite_schema", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
