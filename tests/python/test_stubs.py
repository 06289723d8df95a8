"""The checked-in type stub says what the native module has, and annotations of the package are complete."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hotset
from hotset import Model, _core
from hotset.generation import GenerateOptions

PACKAGE = Path(hotset.__file__).parent


def outline(source: str) -> list[str]:
    """Names and signatures of a stub, without docstrings, comments and order of imports."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        is_text = isinstance(body, list) and body and isinstance(body[0], ast.Expr) and _is_str(body[0].value)
        if is_text:
            body[0] = ast.Expr(ast.Constant(...))
    return [ast.unparse(node) for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]


def _is_str(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_stub_matches_the_module(tmp_path):
    pytest.importorskip("nanobind")
    made = tmp_path / "_core.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "hotset._core", "-o", str(made)]
    subprocess.run(command, check=True, timeout=120)
    checked_in = (PACKAGE / "_core.pyi").read_text()
    assert outline(checked_in) == outline(made.read_text()), f"replace python/hotset/_core.pyi by\n{made.read_text()}"


def test_stub_has_every_public_name():
    names = {node.name for node in ast.parse((PACKAGE / "_core.pyi").read_text()).body if hasattr(node, "name")}
    assert names == {name for name in dir(_core) if not name.startswith("__")}


def test_options_agree_with_the_signature():
    parameters = inspect.signature(Model.generate).parameters.values()
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords == set(GenerateOptions.__annotations__) | {"stream"}


@pytest.mark.parametrize("function", [Model.generate, Model.agenerate, Model.from_pretrained, Model.__init__])
def test_public_functions_are_annotated(function):
    for name, parameter in inspect.signature(function).parameters.items():
        assert name in ("self", "cls") or parameter.annotation is not inspect.Parameter.empty
    assert function.__doc__ or Model.__doc__
