"""Reads the text of a compiled program, as far as the tests ask about it."""

import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")


class Instruction(NamedTuple):
    """name: of its result   shape: with dtype, less the layout   op: its opcode
    operands: names   scope: where in the Python code it comes from   body: of a while loop
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    scope: str
    body: str | None


def computations(text):
    """{name: its instructions} of an HLO module's text."""
    found, current = {}, []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = found.setdefault(head[1], [])
        elif m := _INSTRUCTION.match(line):
            name, shape, op, rest = m.groups()
            scope, body = (re.search(p, rest) for p in (r'op_name="([^"]*)"', r"body=%?([\w.\-]+)"))
            operands = re.findall(r"%([\w.\-]+)", re.split(r", \w+=", rest)[0])
            shape = re.sub(r"\{[^{}]*\}", "", shape)
            texts = scope[1] if scope else "", body[1] if body else None
            current.append(Instruction(name, shape, op, tuple(operands), *texts))
    return found


def loop_bodies(program):
    """(what it carries, its instructions) of each while loop of {name: instructions}."""
    loops = [i for instructions in program.values() for i in instructions if i.body]
    return [(i.shape, program[i.body]) for i in loops]


def depends(instructions, name, on):
    """Whether an instruction needs another one of the same computation."""
    operands = {i.name: i.operands for i in instructions}
    todo, seen = [name], set()
    while todo:
        todo += [o for o in operands.get(todo.pop(), ()) if o not in seen and not seen.add(o)]
    return on in seen
