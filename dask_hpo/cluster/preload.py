"""What a template imports before the first trial, and what it must leave to the trials.

Only libraries are imported ahead: the standard library, and what an installer put in its place. The
user's own modules are looked through for what they import, but run in the trial alone, since they
often choose a device or open a file as they are imported. A library that starts threads,
initialises CUDA or asks for GPUs while it is imported is left out too: a fork would break the first
two, and the third was told that there are no GPUs, for they are hidden while a template imports.
"""

from __future__ import annotations

import functools
import glob
import importlib
import importlib.machinery
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dask_hpo.imports import imports_of_source

#: Torch imports this by itself as the first optimizer is made, which takes most of a second.
_TORCH_LATE = "torch._dynamo"
_MAX_MODULES = 500  # of the user's own, looked through for what they import


def libraries(names: Iterable[str]) -> list[str]:
    """Return the libraries among the names, and those that the user's modules among them import.

    Torch comes first, so that what is imported after it can be watched.
    """
    found: dict[str, None] = {}
    seen: set[str] = set()
    todo = list(names)
    while todo and len(seen) < _MAX_MODULES:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        spec = _find(name)
        if spec is None:
            continue
        if _is_library(name):
            found[name] = None
        else:
            todo.extend(_imports_of_module(spec))
    if any(_top(name) == "torch" for name in found):
        found[_TORCH_LATE] = None
    return sorted(found, key=lambda name: _top(name) != "torch")


def _top(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module without importing its parents."""
    path, spec = None, None
    for depth, _ in enumerate(parts := name.split("."), start=1):
        try:
            finders = (importlib.machinery.BuiltinImporter, importlib.machinery.PathFinder)
            full = ".".join(parts[:depth])
            spec = next((s for f in finders if (s := f.find_spec(full, path))), None)
        except Exception:  # noqa: BLE001 - a broken module is the trial's to complain of
            return None
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None:
            break  # a module; what follows is a name in it
    return spec


def _is_library(name: str) -> bool:
    """Whether an installer put the module where it is, or Python brought it along."""
    top = _top(name)
    if top in sys.stdlib_module_names:
        return True
    spec = _find(top)
    assert spec is not None  # its submodule was found
    inside = next(iter(spec.submodule_search_locations or ()), spec.origin) or ""
    return _holds_packages(Path(inside).parent)


@functools.cache
def _holds_packages(folder: Path) -> bool:
    """Whether installers use this folder: site-packages, wherever it is and whatever its name."""
    return next(folder.glob("*.dist-info"), None) is not None


def _imports_of_module(spec: importlib.machinery.ModuleSpec) -> tuple[str, ...]:
    if not spec.origin or not spec.origin.endswith(".py"):
        return ()
    package = spec.name if spec.submodule_search_locations else spec.name.rpartition(".")[0]
    try:
        return imports_of_source(Path(spec.origin).read_bytes(), package)
    except OSError:
        return ()


def import_ahead(names: Iterable[str]) -> tuple[str, str] | None:
    """Import the modules; return the first that is not safe to fork after, and why, else None.

    After an unsafe one this process is spoilt: start anew without it. Errors are ignored: the
    trial that imports the module will have them too, and say so.
    """
    with _hidden_devices(), _watched_cuda() as asked, warnings.catch_warnings():
        for name in names:
            with suppress(BaseException):  # some modules call sys.exit
                importlib.import_module(name)
            reason = _hazard(asked)
            if reason:
                return name, reason
            _watch(asked)
    return None


def _hazard(asked: list[str]) -> str:
    if threading.active_count() > 1:
        return "starts threads"
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return "initialises CUDA"
    return "asks for GPUs" if asked else ""


@contextmanager
def _hidden_devices() -> Iterator[None]:
    """Hide the GPUs, so that nothing can initialise CUDA: a fork could not use it then."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


_ASKING = ("is_available", "device_count")


@contextmanager
def _watched_cuda() -> Iterator[list[str]]:
    """Note in the list when a module asks torch for GPUs on a machine that has some."""
    try:
        yield []
    finally:
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        for name in _ASKING if cuda else ():
            function = getattr(cuda, name)
            setattr(cuda, name, getattr(function, "_dask_hpo_original", function))


def _watch(asked: list[str]) -> None:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or hasattr(cuda.is_available, "_dask_hpo_original") or not _has_gpu():
        return
    for name in _ASKING:
        setattr(cuda, name, _noting(getattr(cuda, name), asked))


def _noting(function: Callable[[], Any], asked: list[str]) -> Callable[[], Any]:
    def noting() -> Any:
        asked.append(function.__name__)
        return function()

    noting._dask_hpo_original = function  # type: ignore[attr-defined]  # noqa: SLF001
    return noting


def _has_gpu() -> bool:
    """Whether the system shows a GPU at all: NVIDIA's, AMD's, or either under WSL."""
    return any(glob.glob(p) for p in ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg"))  # noqa: PTH207
