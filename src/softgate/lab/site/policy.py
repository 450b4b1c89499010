"""The content security policy of every page: scripts, styles and pictures of the site itself and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re

_INLINE = re.compile(r"<script(?P<attributes>(?![^>]*\bsrc=)[^>]*)>(?P<code>.*?)</script>", re.DOTALL)
_FIRST = '<meta charset="utf-8">'


def restrict(page: str) -> str:
    """``page`` with the policy in its head; scripts of the theme that stand in the page are allowed by their hash."""
    hashes = [
        base64.b64encode(hashlib.sha256(match["code"].encode("utf-8")).digest()).decode("ascii")
        for match in _INLINE.finditer(page)
        if "application/json" not in match["attributes"]
    ]
    scripts = " ".join(["'self'", *dict.fromkeys(f"'sha256-{digest}'" for digest in hashes)])
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    if _FIRST not in page:
        raise ValueError("the page has no head to put the policy into")
    return page.replace(_FIRST, f'{_FIRST}<meta http-equiv="Content-Security-Policy" content="{policy}">', 1)
