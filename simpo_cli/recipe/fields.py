"""What the schema says of its keys: which there are, what each accepts, and the JSON Schema that editors use.

All of it is read from the JSON Schema (draft 2020-12) that pydantic makes of `Recipe`.
"""

import functools
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "simpo recipe"
_COMPUTED = {"type": "string", "pattern": r"\$\{", "description": "computed: ${section.key} or ${oc.env:NAME}"}
_DEFAULTS = {
    "description": "Recipes that this one builds on, found beside this file or among the shipped ones; later wins.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}
_SINGLE = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text"}

Schema = dict[str, Any]


@functools.cache
def root() -> Schema:
    """The JSON Schema of a whole recipe, without references."""
    raw = TypeAdapter(Recipe).json_schema()
    definitions = raw.pop("$defs")

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            value = {**value, **definitions[value["$ref"].rpartition("/")[2]]}
        return {key: inlined(item) for key, item in value.items() if key != "$ref"}

    whole: Schema = inlined(raw)
    return whole


def forms(schema: Schema) -> list[Schema]:
    """The alternatives that a value may have, such as a whole number and the word auto."""
    return [form for part in schema["anyOf"] for form in forms(part)] if "anyOf" in schema else [schema]


def accepts(schema: Schema | None, *kinds: str) -> bool:
    """Whether a value may be of one of these JSON types; words of a choice are no text."""
    found = () if schema is None else forms(schema)
    return any(form.get("type") in kinds and not choices(form) for form in found)


def choices(schema: Schema) -> list[str]:
    """The words of which a value must be one, if it is a word."""
    return [word for form in forms(schema) for word in form.get("enum", [form["const"]] if "const" in form else [])]


def schema_at(path: tuple[str, ...]) -> Schema | None:
    """What a dotted path accepts, also inside lists and free mappings; None when there is no such key."""
    schema: Schema | None = root()
    for part in path:
        if not schema:
            return schema  # no key, or below a value that may be anything
        found: Schema | None = None
        for form in forms(schema):
            free = form.get("additionalProperties")
            if "items" in form and part.isdigit():
                found = form["items"]
            elif part in form.get("properties", ()):
                found = form["properties"][part]
            elif free:
                found = {} if free is True else free
        schema = found
    return schema


def section_of(schema: Schema | None) -> Schema | None:
    """The section that a key holds, or that the items of its list are."""
    held = [] if schema is None else [form.get("items", form) for form in forms(schema)]
    return next((form for form in held if "properties" in form), None)


def nearest_section(path: tuple[str, ...]) -> str:
    """The deepest section that a path goes through, as `simpo recipe schema` knows it; empty for the root."""
    names = [part for part in path if not part.isdigit()]
    while names and section_of(schema_at(tuple(names))) is None:
        names.pop()
    return ".".join(names)


@functools.cache
def all_keys() -> dict[str, Schema]:
    """Every dotted key of a recipe with what it accepts; the keys of list items are left out."""

    def walk(section: Schema, prefix: str) -> Iterator[tuple[str, Schema]]:
        for key, schema in section["properties"].items():
            yield prefix + key, schema
            for below in forms(schema):
                if "properties" in below:
                    yield from walk(below, f"{prefix}{key}.")

    return dict(walk(root(), ""))


def describe(schema: Schema) -> str:
    """What is wanted, as the end of a sentence: `a whole number or auto`."""
    wanted = []
    for form in forms(schema):
        words = choices(form)
        if form.get("type") == "array":
            listed = choices(form["items"])
            names = f"words out of {', '.join(listed)}" if listed else "words"
            wanted.append("a list of sources" if "properties" in form["items"] else f"a list of {names}")
        elif words:
            wanted.append(words[0] if len(words) == 1 else "one of " + ", ".join(words))
        else:
            wanted.append({**_SINGLE, "object": "a mapping", "null": "null"}[form["type"]])
    if "a number" in wanted:
        wanted = [one for one in wanted if one != "a whole number"]
    return " or ".join(wanted)


def bounds(schema: Schema) -> str:
    """What a number must be: `must be at least 1`."""
    for form in (schema, *forms(schema)):
        low, above = form.get("minimum"), form.get("exclusiveMinimum")
        high, below = form.get("maximum"), form.get("exclusiveMaximum")
        if low is not None:
            if high is not None or below is not None:
                return f"must be from {low} to " + (f"below {below}" if high is None else str(high))
            return f"must be {low} or more" if accepts(schema, "number") else f"must be at least {low}"
        if above is not None:
            return f"must be above {above}" + ("" if high is None else f" and at most {high}")
    return "must be a finite number"


def fix_of(schema: Schema) -> str:
    """What to do where a value is outside of its bounds."""
    return schema.get("fix") or next(filter(None, map(fix_of, schema.get("anyOf", ()))), "")


def json_schema(section: str = "") -> Schema:
    """The schema of a recipe file, or of one section such as `loss` or `model.lora`.

    Nothing is required: a file may leave to `defaults:` what it does not say.
    """
    if not section:
        body = _published(root())
        body["properties"] = {"defaults": _DEFAULTS, **body["properties"]}
        return {"$schema": DIALECT, "title": TITLE, **body}
    found = section_of(all_keys().get(section))
    if found is None:
        names = [key for key, schema in all_keys().items() if section_of(schema) and not accepts(schema, "array")]
        raise UserError(f"{section} is not a section of a recipe.", f"Sections: {', '.join(names)}.")
    return {"$schema": DIALECT, "title": f"{TITLE}: {section}", **_published(found)}


def _published(schema: Schema, *, is_form: bool = False) -> Schema:
    """A schema for editors: nothing is required, and what is neither text nor a section may be computed."""
    names = sorted(schema.keys() - {"title", "required", "fix"}, key=lambda key: (key != "description", key))
    body = {key: schema[key] for key in names}
    for key in ("items", "additionalProperties"):
        if body.get(key) and isinstance(body[key], dict):
            body[key] = _published(body[key])
    if "properties" in body:
        body["properties"] = {key: _published(field) for key, field in body["properties"].items()}
    if "anyOf" in body:
        body["anyOf"] = [_published(form, is_form=True) for form in body["anyOf"]]
    if is_form or any("properties" in form for form in forms(schema)) or accepts(schema, "string"):
        return body
    if "anyOf" not in body:
        about = ("description", "default")
        form = {key: value for key, value in body.items() if key not in about}
        body = {key: value for key, value in body.items() if key in about} | {"anyOf": [form]}
    return {**body, "anyOf": [*body["anyOf"], _COMPUTED]}
