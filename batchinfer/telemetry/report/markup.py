"""HTML put together so that nothing that was not written here can become part of it."""

from __future__ import annotations

import html

from batchinfer.redact import redact, visible


class Html(str):
    """Markup. Every other text is escaped where it is put into it."""

    __slots__ = ()


_VOID = frozenset({"meta", "link", "rect", "line", "path", "polyline", "circle", "br"})


def tag(_name: str, *children: object, **attributes: object) -> Html:
    """Return an element. `class_` is its class, `view_box` its viewBox, other underscores become hyphens;
    what is None is left out. Texts are redacted, made visible and escaped."""
    pairs = "".join(
        f' {_attribute(key)}="{html.escape(_shown(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if _name in _VOID and not children:
        return Html(f"<{_name}{pairs}/>" if _name not in {"meta", "link", "br"} else f"<{_name}{pairs}>")
    return Html(f"<{_name}{pairs}>{join(*children)}</{_name}>")


def join(*children: object) -> Html:
    """Return children one after the other; None is nothing."""
    return Html("".join(_child(child) for child in children if child is not None))


def _child(child: object) -> str:
    if isinstance(child, Html):
        return child
    if isinstance(child, (list, tuple)):
        return join(*child)
    return html.escape(_shown(child), quote=False)


def _shown(value: object) -> str:
    return value if isinstance(value, Html) else visible(redact(str(value)), lines=True)


def _attribute(key: str) -> str:
    special = {"class_": "class", "view_box": "viewBox", "preserve": "preserveAspectRatio", "for_": "for"}
    return special.get(key, key.replace("_", "-"))
