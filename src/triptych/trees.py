"""Nested dicts of arrays, as Flax keeps parameters, and their leaves by place."""

from collections.abc import Iterator, Mapping
from typing import Any

Leaf = tuple[str, ...]  # the place of an array: the keys that lead to it


def leaves_of(tree: Mapping[str, Any]) -> dict[Leaf, Any]:
    """Place → array, in the tree's order. Any mapping is a tree, a FrozenDict too."""

    def walk(node: Any, place: Leaf) -> Iterator[tuple[Leaf, Any]]:
        if isinstance(node, Mapping):
            for name, value in node.items():
                yield from walk(value, (*place, name))
        else:
            yield place, node

    return dict(walk(tree, ()))


def tree_of(leaves: Mapping[Leaf, Any]) -> dict[str, Any]:
    """The nested dicts that have these leaves."""
    tree: dict[str, Any] = {}
    for place, value in leaves.items():
        node = tree
        for name in place[:-1]:
            node = node.setdefault(name, {})
        node[place[-1]] = value
    return tree


def plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same arrays in dicts of one's own."""
    return tree_of(leaves_of(tree))
