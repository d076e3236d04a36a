"""Triton's interpreter, several times faster: what it makes again for every operation is made once.

The arrays here have a few dozen elements, so nearly all of an operation's time is Python's: types and shapes
that are built anew, constants that are spread anew, checks of what cannot differ. None of it changes a
result; `test_quick_interpreter` holds the bits against those of the interpreter as it is.

    quick = quicken()       # for the rest of the process
    quick.undo()            # as Triton has it
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from types import FunctionType
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

__all__ = ["Quick", "quicken"]

PLAIN = ("int32", "uint32", "int64", "uint64", "fp32", "fp64")
"""Two of one of these give one of them again; the smaller types may be widened."""

INTEGERS = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1), "int64": (-(2**63), 2**63 - 1)}
"""Types that a constant takes on in an operation with them, and what they hold."""


class Quick:
    """What was put in whose place, so that it can be undone."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, value: Any) -> Any:
        """Set an attribute; what it was."""
        before = getattr(owner, name)
        self._before.append((owner, name, before))
        setattr(owner, name, value)
        return before

    def undo(self) -> None:
        """Put everything back."""
        while self._before:
            setattr(*self._before.pop())


@functools.cache
def quicken() -> Quick:
    """Make the interpreter of this process faster; asked again, what was done."""
    quick = Quick()
    leave_out_what_has_no_effect(quick)
    call_at_once(quick)
    keep_types(quick)
    keep_constants(quick)
    return quick


def leave_out_what_has_no_effect(quick: Quick) -> None:
    """Two things that are done again and again and change nothing.

    A launch puts the interpreter's functions in place of the language's. Each call of a device function does
    so once more: it looks through all of Triton's names and finds them replaced.

    Each sum, difference and product of integers is computed in 64 bits, too, and compared with the limits of
    its type, for an assertion that is made in debugging alone.
    """
    options = interpreter.interpreter_builder.options
    assert not options.debug
    quick.put(
        interpreter.interpreter_builder, "options", dataclasses.replace(options, sanitize_overflow=False)
    )

    @functools.cache
    def modules(function: FunctionType) -> list[Any]:
        return [module for module in function.__globals__.values() if module is tl or module is core]

    def replace_once(function: FunctionType) -> object:
        seen = modules(function)
        if seen and not any(core.is_builtin(module.load) for module in seen):
            return interpreter._LangPatchScope()  # nothing to put back
        return replace(function)

    replace = quick.put(interpreter, "_patch_lang", replace_once)


def call_at_once(quick: Quick) -> None:
    """Functions of the language are called without their wrappers, which hand on what they were given."""

    def patch(module: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        function, semantic = inspect.unwrap(member), interpreter.interpreter_semantic

        def call(*arguments: Any, **named: Any) -> Any:
            named["_semantic"] = semantic
            return function(*arguments, **named)

        scope.set_attr(module, name, call)

    def unwrapped(value: Any) -> Any:
        kind = type(value)
        if kind is core.constexpr:
            return value.value
        return unwrap(value) if kind in (list, tuple, core.tuple) else value

    quick.put(interpreter, "_patch_attr", patch)
    unwrap = quick.put(core, "_unwrap_if_constexpr", unwrapped)


def keep_types(quick: Quick) -> None:
    """Types of blocks, their shapes and numpy's types for them are made once each: nobody changes them."""
    numpy_types: dict[str, Any] = {}
    blocks: dict[tuple[str, tuple[int, ...]], Any] = {}
    shapes: dict[str, Any] = {}

    def numpy_type(type: Any) -> Any:
        if type.name not in numpy_types:
            numpy_types[type.name] = make_numpy_type(type)
        return numpy_types[type.name]

    def block(element: Any, shape: Any) -> Any:
        if element.is_ptr():  # its name leaves out what else a pointer is
            return core.block_type(element, shape)
        key = (element.name, tuple(shape))
        if key not in blocks:
            blocks[key] = core.block_type(element, shape)
        return blocks[key]

    @functools.cache
    def shape_of(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        return core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes])

    def init(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        if type.name not in shapes:  # a block's name says its shape
            shapes[type.name] = shape_of(sizes_of(type))
        self.numel, self.shape = shapes[type.name]

    make_numpy_type = quick.put(interpreter, "_get_np_dtype", numpy_type)
    quick.put(core.block_type, "with_element_ty", lambda self, element: block(element, self.shape))
    quick.put(
        interpreter.InterpreterBuilder, "get_block_ty", lambda self, element, shape: block(element, shape)
    )
    quick.put(core.tensor, "__init__", init)


def sizes_of(type: Any) -> tuple[int, ...]:
    """The shape of a type; of a scalar's, ()."""
    return tuple(type.shape.values) if type.is_block() else ()


def keep_constants(quick: Quick) -> None:
    """Operands that need neither a cast nor a broadcast are handed on; a constant's block is made once."""
    constants: dict[tuple[int, str], Any] = {}

    def broadcast(self: Any, left: Any, right: Any) -> Any:
        if left.shape is right.shape:  # `keep_types` makes one of each
            return left, right
        return slow_broadcast(self, left, right)

    def constant(value: int, type: Any) -> Any:
        key = (value, type.name)
        if key not in constants:
            data = np.full(sizes_of(type) or (1,), value, dtype=interpreter._get_np_dtype(type))
            constants[key] = core.tensor(interpreter.TensorHandle(data, type.scalar), type)
        return constants[key]

    def operands(self: Any, left: Any, right: Any, *options: bool, **named: bool) -> Any:
        # The first two options allow pointers, which are none of the types below; the last is of a division.
        if len(options) <= 2 and not named and isinstance(left, core.tensor):
            kind = left.dtype.name
            if isinstance(right, core.tensor) and right.dtype.name == kind and kind in PLAIN:
                return broadcast(self, left, right)
            if type(right) is int and kind in INTEGERS and INTEGERS[kind][0] <= right <= INTEGERS[kind][1]:
                return left, constant(right, left.type)
        return slow_operands(self, left, right, *options, **named)

    slow_broadcast = quick.put(TritonSemantic, "broadcast_impl_value", broadcast)
    slow_operands = quick.put(TritonSemantic, "binary_op_type_checking_impl", operands)
