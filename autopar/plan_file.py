"""Plan files: JSON with a schema version and a content hash, written atomically, no pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar, cast

from autopar.errors import PlanFormatError
from autopar.plan_json import decode, encode, schema

SCHEMA_VERSION = 4
LINE_LENGTH = 100
AGAIN = "make the plan again with `autopar plan`"
T = TypeVar("T")


# --- writing ---


def content_hash(data: Any) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces), as 64 hex digits."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def layout(data: Any, indent: int = 0, used: int = 0) -> str:
    """JSON text that opens a list or an object only where one line would not hold it."""
    flat = json.dumps(data, allow_nan=False)
    if not isinstance(data, (dict, list)) or indent + used + len(flat) <= LINE_LENGTH:
        return flat
    pad, inner = " " * indent, " " * (indent + 1)
    if isinstance(data, list):
        lines = [inner + layout(item, indent + 1) for item in data]
        return "[\n" + ",\n".join(lines) + f"\n{pad}]"
    keys = [json.dumps(key) + ": " for key in data]
    values = data.values()
    lines = [
        inner + key + layout(value, indent + 1, len(key))
        for key, value in zip(keys, values, strict=True)
    ]
    return "{\n" + ",\n".join(lines) + f"\n{pad}}}"


def dumps(value: Any) -> str:
    """The text of the file that holds the dataclass ``value``."""
    body = _body(value)
    return layout({"sha256": content_hash(body), **body}) + "\n"


def digest(value: Any) -> str:
    """SHA-256, in hex, that ``dumps`` writes into the file of the dataclass ``value``."""
    return content_hash(_body(value))


def _body(value: Any) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, **encode(type(value), value)}


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file that is seen either whole or not at all, even after a crash.

    Raises:
        PlanFormatError: the file cannot be written there.
    """
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes the file private; give it the mode that open() would have given.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _unwritable(target, error) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: OSError) -> PlanFormatError:
    return PlanFormatError(
        f"the file cannot be written: {error.strerror}",
        expected="a path in an existing, writable directory",
        where=str(path),
        hint="create the directory or choose another path",
    )


# --- reading ---


def loads(cls: type[T], text: str, where: str) -> T:
    """The ``cls`` that ``dumps`` wrote as ``text``; ``where`` names the file in errors.

    Raises:
        PlanFormatError: the text is no JSON, of another schema version, of wrong types,
            or was altered after it was written.
    """
    data = _parsed(text, where)
    _check_version(data, where)
    _check_types(cls, data, where)
    _check_hash(data, where)
    return cast(T, decode(cls, data))


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file.

    Raises:
        PlanFormatError: the file is missing, unreadable or no UTF-8 text.
    """
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise PlanFormatError(
            f"the file cannot be read: {error.strerror}",
            expected="a plan file",
            where=str(path),
            hint="check the path, or " + AGAIN,
        ) from error
    except UnicodeDecodeError as error:
        raise _corrupt(f"byte {error.start} is no UTF-8 text", str(path)) from error


def _corrupt(found: str, where: str) -> PlanFormatError:
    return PlanFormatError(
        found,
        expected="a plan file: one JSON object, as `autopar plan -o` writes it",
        where=where,
        hint="the file is truncated, corrupt or no plan; copy it once more, or " + AGAIN,
    )


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise _corrupt(f"not JSON: {error}", where) from error
    if not isinstance(data, dict):
        raise _corrupt(f"a JSON {type(data).__name__}", where)
    return data


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal} is no finite number")
    return number


def _check_version(data: dict[str, Any], where: str) -> None:
    found = data.get("schema_version")
    if type(found) is int and found == SCHEMA_VERSION:
        return
    newer = type(found) is int and found > SCHEMA_VERSION
    raise PlanFormatError(
        "no schema_version" if found is None else f"schema_version {found!r}",
        expected=f"schema_version {SCHEMA_VERSION}",
        where=where,
        hint="upgrade autopar: a newer one wrote this plan" if newer else AGAIN,
    )


def file_schema(cls: type) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the file that holds a ``cls``."""
    body = schema(cls)
    extra = {"sha256": {"type": "string"}, "schema_version": {"const": SCHEMA_VERSION}}
    return {
        **body,
        "properties": {**extra, **body["properties"]},
        "required": [*extra, *body["required"]],
    }


def _check_types(cls: type, data: dict[str, Any], where: str) -> None:
    import jsonschema  # here: half of the import time of a plan, and needed only to read one

    error = next(jsonschema.Draft202012Validator(file_schema(cls)).iter_errors(data), None)
    if error is None:
        return
    raise PlanFormatError(
        error.message if len(error.message) < 200 else error.message[:200] + " ...",
        expected=f"{error.validator} {json.dumps(error.validator_value)[:120]}",
        where=f"{where}, at {error.json_path}",
        hint="the file was edited or is no plan; " + AGAIN,
    )


def _check_hash(data: dict[str, Any], where: str) -> None:
    stated = data["sha256"]
    actual = content_hash({key: value for key, value in data.items() if key != "sha256"})
    if stated != actual:
        raise PlanFormatError(
            f"content with sha256 {actual[:12]}...",
            expected=f"sha256 {stated[:12]}..., as the file itself states",
            where=where,
            hint="the file was edited after it was written; to change a decision, "
            "plan again with `autopar plan --pin KEY=VALUE`",
        )
