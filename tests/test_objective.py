"""Objectives: what travels, and what is said when something cannot."""

import functools
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest

from dask_hpo.errors import ObjectiveError, OptionError
from dask_hpo.imports import imports_of_source
from dask_hpo.objective import FunctionObjective, ScriptObjective, as_objective, check_signature


def train(lr, epochs=1):
    return lr * epochs


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text("import numpy\nimport helper\nprint('hi')\n")
    (tmp_path / "helper.py").write_text("import scipy.stats\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1")
    (tmp_path / "data" / "b.csv").write_text("2")
    return tmp_path


def test_a_function_travels_as_bytes():
    objective = as_objective(train)
    payload = pickle.loads(pickle.dumps(objective.payload()))
    assert objective.name == "train"
    assert pickle.loads(payload.function)(lr=2, epochs=3) == 6
    assert objective.describe().startswith("function ")
    assert len(objective.digest) == 64
    assert as_objective(objective) is objective


def test_names_of_other_callables():
    class Model:
        def __call__(self, lr):
            return lr

    assert FunctionObjective(functools.partial(train, epochs=2)).name == "train"
    assert FunctionObjective(Model()).name == "Model"
    assert FunctionObjective(lambda lr: lr).name == "function"


def test_modules_that_a_function_needs_are_found():
    import numpy as np

    def objective(lr):
        import sklearn.svm  # not loaded here: found in the code

        return np.mean([lr, sklearn.svm.__name__ == ""])

    assert set(FunctionObjective(objective).preload) >= {"numpy", "sklearn.svm"}
    assert set(FunctionObjective(functools.partial(objective)).preload) >= {"sklearn.svm"}
    assert not {"os", "dask_hpo"} & set(FunctionObjective(objective).preload)


def test_what_cannot_travel_is_named():
    lock = threading.Lock()

    def locked(lr):
        with lock:
            return lr

    with pytest.raises(ObjectiveError, match=r"locked cannot be sent.*'lock' \(lock\).*create"):
        FunctionObjective(locked)


@pytest.mark.parametrize("thing", [3, None, "train.txt", object()])
def test_other_things_are_no_objective(thing):
    with pytest.raises(OptionError, match="an objective is a function"):
        as_objective(thing)


def test_a_signature_is_checked_against_the_space():
    check_signature(FunctionObjective(train), ["lr"])
    check_signature(FunctionObjective(lambda **config: config), ["anything"])
    check_signature(FunctionObjective(functools.partial(train, lr=1)), ["epochs"])
    with pytest.raises(ObjectiveError, match=r"takes no 'epoch'.*near: epochs"):
        check_signature(FunctionObjective(train), ["lr", "epoch"])
    with pytest.raises(ObjectiveError, match="requires 'lr', which the search space lacks"):
        check_signature(FunctionObjective(train), ["epochs"])

    def positional(lr, /):
        return lr

    with pytest.raises(ObjectiveError, match="positional-only"):
        check_signature(FunctionObjective(positional), [])


def test_a_script_takes_its_files_along(folder):
    objective = ScriptObjective(folder / "train.py", files=["helper.py", "data/*.csv"])
    assert objective.name == "train"
    assert sorted(objective.payload().files) == [
        "data/a.csv",
        "data/b.csv",
        "helper.py",
        "train.py",
    ]
    assert objective.preload == ("numpy", "scipy.stats")  # of the helper too, but not itself
    assert objective.describe().endswith("train.py with 3 files")


def test_a_scripts_digest_is_that_of_its_content(folder):
    script = str(folder / "train.py")
    first = ScriptObjective(script, files="data").digest
    assert ScriptObjective(script, files=["data/*"]).digest == first
    assert ScriptObjective(script, files="data", arguments=["--fast"]).digest != first
    (folder / "data" / "a.csv").write_text("changed")
    assert ScriptObjective(script, files="data").digest != first


def test_a_missing_script_names_its_neighbours(folder):
    with pytest.raises(ObjectiveError, match=r"trian.py.*near: train.py"):
        as_objective(str(folder / "trian.py"))


def test_a_missing_file_names_its_neighbours(folder):
    with pytest.raises(ObjectiveError, match=r"files='helpr.py' matches no file.*near: helper.py"):
        ScriptObjective(folder / "train.py", files=["helpr.py"])


def test_a_file_outside_the_folder_is_refused(folder):
    inner = folder / "data" / "inner.py"
    inner.write_text("")
    with pytest.raises(ObjectiveError, match="outside the script's folder"):
        ScriptObjective(inner, files=["../helper.py"])


def test_a_syntax_error_is_found_at_once(folder):
    (folder / "train.py").write_text("x = 1\nif x\n")
    with pytest.raises(ObjectiveError, match=r"train.py, line 2.*in 'if x'"):
        ScriptObjective(folder / "train.py")


def test_imports_of_a_source():
    source = textwrap.dedent(
        """
        import a, b.c as d
        from e.f import g
        from . import h
        from ..i import j
        try:
            import k
        except ImportError:
            import l
        if True:
            with open("x"):
                import m
        def function():
            import not_this
        """
    ).encode()
    assert imports_of_source(source) == ("a", "b.c", "e.f", "k", "l", "m")
    assert imports_of_source(source, "pack.sub")[3:5] == ("pack.sub.h", "pack.i")
    assert imports_of_source(b"not python at all") == ()


def test_importing_it_loads_no_dask():
    code = (
        "import sys, dask_hpo.objective; print({'dask', 'numpy', 'cloudpickle'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert output.stdout == "set()\n"
