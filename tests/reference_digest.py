"""A second implementation of docs/digest.md, for scalars and containers: written from the page, slow and plain."""

from __future__ import annotations

import struct
from typing import Any

from blake3 import blake3


def n(number: int) -> bytes:
    return number.to_bytes(8, "big")


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def double(number: float) -> bytes:
    return bytes.fromhex("7ff8000000000000") if number != number else struct.pack(">d", number)


def fits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def all_are(kind: type, items: Any) -> bool:
    return len(items) > 0 and all(type(item) is kind for item in items)


def seq(items: Any) -> bytes:
    head = n(len(items))
    if all_are(float, items):
        return head + b"f" + b"".join(map(double, items))
    if all_are(int, items) and all(map(fits, items)):
        return head + b"i" + b"".join(item.to_bytes(8, "big", signed=True) for item in items)
    if all_are(str, items):
        return head + b"s" + b"".join(n(len(item)) for item in items) + b"".join(map(utf8, items))
    return head + b"v" + b"".join(map(E, items))


def mapping(value: dict[Any, Any]) -> bytes:
    if all_are(str, value):
        names = sorted(value, key=lambda name: [ord(character) for character in name])
        return b"s" + seq(names) + seq([value[name] for name in names])
    pairs = sorted((E(key), E(item)) for key, item in value.items())
    return b"v" + n(len(pairs)) + b"".join(key + item for key, item in pairs)


def members(value: Any) -> bytes:
    items = list(value)
    if all_are(str, items):
        return seq(sorted(items))
    return n(len(items)) + b"v" + b"".join(sorted(map(E, items)))


def long_form(value: Any) -> bytes:
    kind = type(value)
    if value is None or kind in (bool, type(...)):
        return {None: b"N", True: b"T", False: b"F", ...: b"E"}[value]
    if kind is int:
        if fits(value):
            return b"i" + value.to_bytes(8, "big", signed=True)
        size = value.bit_length() // 8 + 1
        return b"I" + n(size) + value.to_bytes(size, "big", signed=True)
    if kind is float:
        return b"f" + double(value)
    if kind is complex:
        return b"c" + double(value.real) + double(value.imag)
    if kind is str:
        return b"s" + n(len(utf8(value))) + utf8(value)
    if kind in (bytes, bytearray):
        return (b"b" if kind is bytes else b"a") + n(len(value)) + bytes(value)
    if kind in (list, tuple):
        return (b"l" if kind is list else b"t") + seq(value)
    if kind is dict:
        return b"d" + mapping(value)
    assert kind in (set, frozenset)
    return (b"S" if kind is set else b"Z") + members(value)


def E(value: Any) -> bytes:
    encoded = long_form(value)
    return encoded if len(encoded) <= 1024 else b"#" + blake3(encoded).digest()


def digest_of(value: Any) -> str:
    return blake3(b"dibs digest 1 value\0" + E(value)).hexdigest(20)


def digest_of_call(prefix: bytes, values: list[tuple[str, Any]]) -> str:
    head = b"dibs digest 1 call\0" + n(len(prefix)) + prefix + n(len(values))
    body = b"".join(n(len(utf8(name))) + utf8(name) + E(value) for name, value in values)
    return blake3(head + body).hexdigest(20)
