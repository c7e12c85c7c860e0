"""Arrays and plain containers out of a pickle, without unpickling it.

A pickle is a program. This reads the few of its instructions that build containers, numbers,
strings and numpy arrays, and refuses the rest; no name in it is ever looked up or called. Time and
memory are linear in the size of the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

_DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_ARRAY, _DTYPE, _RECONSTRUCT, _ENCODE = "ndarray", "dtype", "_reconstruct", "encode"
_NAMES = {
    "numpy ndarray": _ARRAY,
    "numpy dtype": _DTYPE,
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "_codecs encode": _ENCODE,
}


class _Name:
    """One of `_NAMES`."""

    def __init__(self, name: str):
        self.name = name


class _Made:
    """What would be the result of a call: of which name, with which arguments and state."""

    def __init__(self, name: str, arguments: tuple[Any, ...]):
        self.name, self.arguments, self.state = name, arguments, None


def load(data: bytes) -> Any:
    """What a pickle holds: dicts, lists, tuples, integers, strings, None, bools, integer arrays.

    Strings of Python 2 are bytes.

    Raises:
      ValueError: it is damaged, or holds something else.
    """
    machine = _Machine(len(data))
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return _arrays(machine.pop())
        machine.do(opcode.name, argument)
    raise ValueError("it has no end")


def _arrays(value: Any) -> Any:
    """A dict, or any other value, with its arrays built."""
    if isinstance(value, dict):
        return {k: _array(v) if isinstance(v, _Made) else v for k, v in value.items()}
    return _array(value) if isinstance(value, _Made) else value


def _array(made: _Made) -> np.ndarray:
    if made.name != _RECONSTRUCT or not isinstance(made.state, tuple) or len(made.state) != 5:
        raise ValueError("it has an array without contents")
    _, shape, dtype, fortran, contents = made.state
    if not isinstance(contents, bytes) or not isinstance(dtype, _Made) or dtype.name != _DTYPE:
        raise ValueError("it has an array that is not of numbers")
    code = dtype.arguments[0] if dtype.arguments else None
    code = code.decode("latin-1") if isinstance(code, bytes) else code
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"it has an array of {repr(code)[:40]}, which are no integers")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    big = np.dtype(code).newbyteorder(">" if order in (">", b">") else "<")
    flat = np.frombuffer(contents, big)
    if not isinstance(shape, tuple) or not all(type(s) is int and s >= 0 for s in shape):
        raise ValueError("it has an array of no shape")
    return flat.reshape(shape, order="F" if fortran else "C")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, size: int):
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._to_encode = size  # Characters: a text is encoded once.

    def pop(self) -> Any:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) <= floor:
            raise ValueError("its stack is empty")
        return self._stack.pop()

    def do(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        if name in _LITERALS:
            self._stack.append(_LITERALS[name](argument))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise ValueError(f"it has an instruction {name}, which is not of array data")

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("it has no mark")
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _top(self, kind: type) -> Any:
        top = self.pop()
        self._stack.append(top)
        if type(top) is not kind:
            raise ValueError(f"it adds to a {type(top).__name__} as if it were a {kind.__name__}")
        return top

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _short_tuple(self, count: int) -> None:
        self._stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def _append(self, _: Any) -> None:
        value = self.pop()
        self._top(list).append(value)

    def _extend(self, _: Any) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _set(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._put_items([key, value])

    def _set_all(self, _: Any) -> None:
        self._put_items(self._since_mark())

    def _put_items(self, items: list[Any]) -> None:
        if len(items) % 2 or not all(isinstance(k, str | bytes | int) for k in items[::2]):
            raise ValueError("it has a dict with other keys than strings and integers")
        self._top(dict).update(zip(items[::2], items[1::2], strict=True))

    def _list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._put_items(items)

    def _remember(self, place: int | None) -> None:
        value = self.pop()
        self._stack.append(value)
        self._memo[len(self._memo) if place is None else place] = value

    def _recall(self, place: int) -> None:
        if place not in self._memo:
            raise ValueError("it recalls what it has not stored")
        self._stack.append(self._memo[place])

    def _global(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(f"it asks for {name.replace(' ', '.')[:60]}, which is not array data")
        self._stack.append(_Name(_NAMES[name]))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self._global(f"{module} {name}")

    def _call(self, _: Any) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        if called.name != _ENCODE:
            self._stack.append(_Made(called.name, arguments))
            return
        # How Python 3 writes bytes for Python 2.
        text, codec = arguments if len(arguments) == 2 else (None, None)
        if not isinstance(text, str) or codec not in ("latin1", b"latin1"):
            raise ValueError("it encodes what is no text of bytes")
        self._to_encode -= len(text)
        if self._to_encode < 0:
            raise ValueError("it encodes a text again and again")
        self._stack.append(text.encode("latin-1"))

    def _build(self, _: Any) -> None:
        state = self.pop()
        self._top(_Made).state = state


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")  # pickletools reads strings of Python 2 as Latin-1.


_LITERALS: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
} | {
    name: lambda value: value
    for name in (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "BINBYTES", "SHORT_BINBYTES",
        "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    )
} | dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _bytes)  # fmt: skip

_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, _: machine._short_tuple(1),
    "TUPLE2": lambda machine, _: machine._short_tuple(2),
    "TUPLE3": lambda machine, _: machine._short_tuple(3),
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._extend,
    "SETITEM": _Machine._set,
    "SETITEMS": _Machine._set_all,
    "PUT": _Machine._remember,
    "BINPUT": _Machine._remember,
    "LONG_BINPUT": _Machine._remember,
    "MEMOIZE": _Machine._remember,
    "GET": _Machine._recall,
    "BINGET": _Machine._recall,
    "LONG_BINGET": _Machine._recall,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "BUILD": _Machine._build,
}
