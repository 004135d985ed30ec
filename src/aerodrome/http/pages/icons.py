"""The pages' icons, as the inside of an SVG of 20 by 20 (the brand's: 32 by 32), drawn in lines of the text's colour."""

from __future__ import annotations

from markupsafe import Markup

_SHAPES = {
    "overview": '<path d="M3 17V9m5 8V4m5 13v-6m4 6H2"/>',
    "fleet": '<rect x="3" y="3" width="14" height="5.5" rx="1.5"/><rect x="3" y="11.5" width="14" height="5.5" rx="1.5"/>'
    '<path d="M6 5.8h.01M6 14.3h.01"/>',
    "sessions": '<path d="M4 4h12a1 1 0 0 1 1 1v8a1 1 0 0 1-1 1H9l-4 3v-3H4a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1Z"/>',
    "tenants": '<path d="M4 17V5l6-2v14m0-9 6 2v7M2.5 17h15M7 7.5h.01M7 11h.01M13 12.5h.01"/>',
    "users": '<circle cx="7.5" cy="7" r="3"/><path d="M2.5 16c.6-2.7 2.5-4 5-4s4.4 1.3 5 4M13 4.5a2.7 2.7 0 0 1 0 5'
    'M14.5 12.3c1.6.5 2.6 1.7 3 3.7"/>',
    "keys": '<circle cx="7" cy="13" r="3.5"/><path d="m9.5 10.5 7-7M13.5 6.5 16 9"/>',
    "audit": '<path d="M5 2.5h7L15.5 6v11.5H5zM8 10h4.5M8 13.5h4.5M8 6.5h2"/>',
    "playground": '<path d="m6 4 10 6-10 6z"/>',
}
_LINES = 'fill="none" stroke="currentColor" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"'
_BRAND = '<rect x="1.5" y="1.5" width="29" height="29" rx="8"/><path d="M16 7 9.5 25M16 7l6.5 18M16 20v5M16 13v3"/>'


def icon(name: str) -> Markup:
    """Return an icon to stand beside words that say the same."""
    if name == "brand":
        return Markup(f'<svg viewBox="0 0 32 32" {_LINES} stroke-width="2.4">{_BRAND}</svg>')  # noqa: S704  ours
    return Markup(f'<svg viewBox="0 0 20 20" {_LINES} stroke-width="1.6">{_SHAPES[name]}</svg>')  # noqa: S704
