"""Filters of system calls by libseccomp, which knows the numbers of each architecture."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Self

LIBRARY = "libseccomp.so.2"

KILL = 0x8000_0000
ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000
_ATTRIBUTE_BAD_ARCHITECTURE, _ATTRIBUTE_NO_NEW_PRIVS = 2, 3


def fails_with(number: int) -> int:
    """The action that lets a call fail with an `errno` value."""
    return _ERRNO | number


class Compare(IntEnum):
    """`enum scmp_compare`."""

    NOT_EQUAL = 1
    LESS_OR_EQUAL = 3
    EQUAL = 4
    GREATER = 6
    MASKED_EQUAL = 7


class _Argument(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Where:
    """A condition on one argument of a call.

    Attributes:
        argument: Its index from 0.
        compare: How.
        value: The operand; the mask for `MASKED_EQUAL`.
        masked: The required value of the masked argument.
    """

    argument: int
    compare: Compare
    value: int
    masked: int = 0


class Unavailable(Exception):  # noqa: N818  it is a finding, not a fault
    """libseccomp or the kernel cannot do it; the text says why."""


@cache
def open_library(name: str = LIBRARY) -> ctypes.CDLL:
    """libseccomp; once opened it stays at hand, also after files can no longer be opened.

    Raises:
        Unavailable: It is not there, or lacks a function.
    """
    try:
        library = ctypes.CDLL(name)
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_rule_add_array.argtypes = (
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_void_p,
        )
        library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
        library.seccomp_load.argtypes = library.seccomp_release.argtypes = (ctypes.c_void_p,)
    except (OSError, AttributeError):
        raise Unavailable(f"{name} is not there or lacks a function") from None
    return library


class Filter:
    """A filter in the making; `load` puts it on the calling thread for good."""

    def __init__(self, default: int = KILL, *, library: str = LIBRARY) -> None:
        """Starts a filter.

        Args:
            default: What happens to calls that no rule names; another architecture's are always killed.
            library: Name of libseccomp.

        Raises:
            Unavailable: It is not there.
        """
        self._lib = open_library(library)
        self._context = self._lib.seccomp_init(ctypes.c_uint32(default))
        if not self._context:
            raise Unavailable("libseccomp starts no filter")
        self._set(_ATTRIBUTE_BAD_ARCHITECTURE, KILL)
        # Set by us beforehand: the library's own prctl would be one more call to allow.
        self._set(_ATTRIBUTE_NO_NEW_PRIVS, 0)

    def _set(self, attribute: int, value: int) -> None:
        if self._lib.seccomp_attr_set(self._context, attribute, value) != 0:
            raise Unavailable("libseccomp does not know an attribute")

    def rule(self, action: int, names: Iterable[str], *conditions: Where) -> Self:
        """Adds a rule for calls by name; names that the library or this architecture lacks have no effect.

        Raises:
            Unavailable: libseccomp refuses the rule.
        """
        arguments = (_Argument * len(conditions))(
            *(_Argument(c.argument, c.compare, c.value, c.masked) for c in conditions)
        )
        for name in names:
            number = self._lib.seccomp_syscall_resolve_name(name.encode())
            if number < 0:  # another architecture's, or newer than the library: meets the default
                continue
            if self._lib.seccomp_rule_add_array(self._context, action, number, len(conditions), arguments) != 0:
                raise Unavailable(f"libseccomp refuses a rule for {name}")
        return self

    def load(self) -> None:
        """Applies the filter to the calling thread; needs no_new_privs. The filter cannot be used again.

        Raises:
            Unavailable: The kernel refuses it.
        """
        context, self._context = self._context, None
        result = self._lib.seccomp_load(context)
        self._lib.seccomp_release(context)
        if result != 0:
            raise Unavailable(f"the kernel refuses the filter: {errno.errorcode.get(-result, 'unknown error')}")
