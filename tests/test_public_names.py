"""What the package offers: one path to each public name, documented, with an example, and annotated."""

import dataclasses
import inspect
from pathlib import Path

import pytest

import jaxnn

ROOT = Path(jaxnn.__file__).parent


def test_a_public_name_has_one_path():
    paths = {}

    def collect(module, path):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value):
                collect(value, f"{path}.{name}")
            elif not isinstance(value, (int, float, str, tuple)):
                paths.setdefault(id(value), []).append(f"{path}.{name}")

    collect(jaxnn, "jaxnn")
    assert [found for found in paths.values() if len(found) > 1] == []


PUBLIC = [name for name in jaxnn.__all__ if not inspect.ismodule(getattr(jaxnn, name))]


def test_all_is_what_the_package_offers():
    assert len(set(jaxnn.__all__)) == len(jaxnn.__all__)
    for name in jaxnn.__all__:
        assert hasattr(jaxnn, name)


@pytest.mark.parametrize("name", [n for n in PUBLIC if not isinstance(getattr(jaxnn, n), tuple)])
def test_public_names_are_documented(name):
    thing = getattr(jaxnn, name)
    doc = inspect.getdoc(thing)
    assert doc
    if inspect.isfunction(inspect.unwrap(thing)) or (inspect.isclass(thing) and name.islower()):
        assert ">>>" in doc, f"{name} has no example"


def annotated(record):
    return {name for base in record.__mro__ for name in inspect.get_annotations(base)}


def test_public_annotations_are_complete():
    for name in PUBLIC:
        thing = inspect.unwrap(getattr(jaxnn, name))
        if inspect.isclass(thing) and name.islower():  # a record: its fields are its arguments
            assert {field.name for field in dataclasses.fields(thing)} <= annotated(thing), name
            thing = thing.__init__
        if inspect.isfunction(thing):
            parameters = inspect.signature(thing).parameters
            assert set(parameters) - {"self"} | {"return"} == set(thing.__annotations__), name


def test_the_package_says_it_is_typed():
    assert (ROOT / "py.typed").exists()
