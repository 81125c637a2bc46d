"""Registries: lookup, suggestions for unknown names, and duplicate names."""

import pytest

from longplay.common.registry import Registry


def test_unknown_name_suggests_the_closest_match() -> None:
    registry: Registry[int] = Registry("encoder")
    registry.register("sasrec", 1)
    with pytest.raises(ValueError, match=r"encoder 'sasrek': unknown; did you mean sasrec\?"):
        registry["sasrek"]


def test_membership_and_get_follow_the_mapping_protocol() -> None:
    registry: Registry[int] = Registry("loss")
    registry.register("bce", 7)
    assert "bce" in registry
    assert "bpr" not in registry
    assert registry.get("bpr") is None
    assert list(registry) == ["bce"]


def test_duplicate_name_raises() -> None:
    registry: Registry[str] = Registry("metric")
    registry.register("mrr", "first")
    with pytest.raises(ValueError, match="already registered"):
        registry.register("mrr", "second")
