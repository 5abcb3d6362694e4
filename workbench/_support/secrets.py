"""Signatures and passwords in addresses: what must not stand in any file or message."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

_USER = re.compile(r"((?:https?|ftp)://)[^/\s@?#'\"<>]+@")
_XML = re.compile(r"<(UserPwd|AccessToken|HttpAuth)>.*?</\1>", re.DOTALL)
_PAIR = re.compile(r"([?&;])([^=&;?#\s\"'<>|]+)=([^&;#\s\"'<>|,]*)")
_QUERY = re.compile(r"\?[^\s\"'<>|]*")

_PARTS = (
    "signature", "token", "secret", "passw", "pwd", "credential", "apikey", "api_key", "api-key",
    "subscription", "hmac", "jwt", "authorization", "accesskey", "access_key", "accessid",
)  # fmt: skip
_BEGINNINGS = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "header", "hdn")
_NAMES = {"sig", "key", "auth", "expires", "exp", "policy", "key-pair-id", "session", "sessionid"}
# of Azure's signatures; in other addresses they may mean anything
_WITH_SIG = {
    "se", "st", "sp", "sv", "sr", "spr", "ske", "skt", "sks", "skv", "skoid", "sktid", "sip",
    "ss", "srt", "saoid", "suoid", "scid", "sdd", "ses",
}  # fmt: skip


def without_secrets(text: str) -> str:
    """Return an address, or any text with addresses in it, without signatures and passwords.

    Of a query only the parameters that sign go; `?id=7` says which raster it is.

    Example:
        >>> without_secrets("https://me:pw@host/a.tif?id=7&sig=6f2e&se=2026-11-30")
        'https://host/a.tif?id=7'
    """
    text = _XML.sub("", _USER.sub(r"\1", text))
    return _QUERY.sub(lambda query: _unsigned(query[0]), text)


def has_secrets(text: str) -> bool:
    """Whether there is a signature or password in an address."""
    return without_secrets(text) != text


def _unsigned(query: str) -> str:
    names = {name.lower() for _, name, _ in _PAIR.findall(query)}
    more = _WITH_SIG if "sig" in names else set()

    def keep(pair: re.Match[str]) -> str:
        separator, name, value = pair.groups()
        lower = unquote(name).lower()
        if (
            lower in _NAMES | more
            or lower.startswith(_BEGINNINGS)
            or any(part in lower for part in _PARTS)
        ):
            return "?" if separator == "?" else ""
        if "%3A%2F%2F" in value.upper():  # GDAL's /vsicurl?url=…
            value = quote(without_secrets(unquote(value)), safe="")
        return f"{separator}{name}={value}"

    kept = re.sub(r"\?[&;]+", "?", _PAIR.sub(keep, query))
    return re.sub(r"\?(?=,|$)", "", kept)
