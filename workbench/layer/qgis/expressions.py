"""QGIS expressions: the one place where names and values are quoted for them."""

from __future__ import annotations


def column(name: str) -> str:
    """Return a reference to a field."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Return a text as a literal, quoted as `QgsExpression.quotedString` does."""
    for character, escaped in (("'", "''"), ("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t")):
        value = value.replace(character, escaped)
    return f"'{value}'"


def is_one_of(name: str, *values: str) -> str:
    """Return a condition: whether a field has one of these texts."""
    if len(values) == 1:
        return f"{column(name)} = {text(values[0])}"
    return f"{column(name)} in ({', '.join(map(text, values))})"


def html(expression: str) -> str:
    """Return an expression that gives the text of another one, safe to stand in HTML."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        expression = f"replace({expression}, {text(character)}, {text(entity)})"
    return expression
