"""The error tree: what is drawn is what there is, and every error survives a trip between processes."""

import inspect
import pickle  # noqa: TID251 - how Ray takes errors from actor to actor
import re

import pytest

from elastic import errors
from elastic.errors import ElasticError

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def drawn() -> dict[str, str]:
    """Class → its parent, as the tree in the docstring shows them."""
    parents, above = {"ElasticError": "Exception"}, {0: "ElasticError"}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    (?P<stem>[│ ]*)[├└]── (?P<name>\w+)", line)
        if match:
            depth = len(match["stem"]) // 4 + 1
            parents[match["name"]] = above[depth - 1]
            above[depth] = match["name"]
    return parents


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert drawn() == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}


@every_class
def test_every_error_keeps_its_type_and_message_between_processes(cls: type[ElasticError]) -> None:
    copy = pickle.loads(pickle.dumps(cls("what happened, and what to do")))
    assert type(copy) is cls
    assert str(copy) == "what happened, and what to do"


@every_class
def test_no_error_has_its_own_init(cls: type[ElasticError]) -> None:
    assert not {"__init__", "__new__", "__reduce__", "__str__"} & set(vars(cls))


@every_class
def test_every_error_is_named_for_what_happened_and_says_so(cls: type[ElasticError]) -> None:
    assert cls.__name__.endswith("Error")
    assert (cls.__doc__ or "").endswith(".")
    assert len(cls.__bases__) == 1
