"""Model cards: what is recorded about a version, for people to read, as Markdown and as one HTML file.

`card` says what is in one, `document` is its form-free shape, `markdown` and `page` are its two forms.
"""

from __future__ import annotations

from noa_registry.cards.card import SERVER, Card, CardFacts

__all__ = ["SERVER", "Card", "CardFacts"]
