"""Whether a chat template only copies the contents of messages, and never decides by them.

Such a template writes the same text around the contents in all conversations of the same roles, so it need not be
rendered for each. This is read off the template's syntax tree: an unknown construct counts as a decision.
"""

from functools import lru_cache

import jinja2
from jinja2 import nodes

PLAIN, LIST, MESSAGE, CONTENT, LOOP, UNKNOWN = "plain", "list", "message", "content", "loop", "unknown"
_OF_TYPES = {"defined", "undefined", "string", "mapping", "iterable", "sequence", "none", "number"}  # true for any text
_PLACES = {"index", "index0", "revindex", "revindex0", "first", "last", "length"}
_WRITTEN = {PLAIN, CONTENT}


@lru_cache(maxsize=8)
def only_copies(source: str) -> bool:
    """Whether each content is written as it is, or stripped, whatever it says. (Without tools and other keys.)"""
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except jinja2.TemplateError:  # {% generation %} marks, say
        return False
    names: dict[str, str] = {"messages": LIST}
    while True:
        before = dict(names)
        if not _copy(tree.body, names):
            return False
        if names == before:
            return True


def _copy(body: list[nodes.Node], names: dict[str, str]) -> bool:
    """Whether statements only copy; notes what their variables hold."""
    return all(_copies(node, names) for node in body)


def _copies(node: nodes.Node, names: dict[str, str]) -> bool:
    match node:
        case nodes.Output():
            return all(_kind(each, names) in _WRITTEN for each in node.nodes)
        case nodes.If():
            return _kind(node.test, names) == PLAIN and _copy([*node.body, *node.elif_, *node.else_], names)
        case nodes.For():
            item = {LIST: MESSAGE, PLAIN: PLAIN}.get(_kind(node.iter, names), UNKNOWN)
            if not _assign(node.target, item, names) or not _assign(nodes.Name("loop", "store"), LOOP, names):
                return False
            return (node.test is None or _kind(node.test, names) == PLAIN) and _copy([*node.body, *node.else_], names)
        case nodes.Assign():
            return _assign(node.target, _kind(node.node, names), names)
        case nodes.ExprStmt():
            return _kind(node.node, names) == PLAIN
    return type(node).__name__ in ("Break", "Continue")


def _assign(target: nodes.Node, kind: str, names: dict[str, str]) -> bool:
    if not isinstance(target, nodes.Name):  # of a namespace, or several
        return kind == PLAIN
    known = names.setdefault(target.name, kind)
    if known != kind:
        names[target.name] = CONTENT if {known, kind} <= _WRITTEN else UNKNOWN
    return names[target.name] != UNKNOWN


def _kind(node: nodes.Node, names: dict[str, str]) -> str:
    """What an expression holds."""
    match node:
        case nodes.Name():
            return names.get(node.name, PLAIN)
        case nodes.Getattr() | nodes.Getitem():
            return _part(node, names)
        case nodes.Filter(name="trim", node=nodes.Node() as text, args=[], kwargs=[]):
            return _trimmed(text, names)
        case nodes.Call(node=nodes.Getattr(attr="strip", node=text), args=[], kwargs=[]):
            return _trimmed(text, names)
        case nodes.Filter(name="length", node=nodes.Name() as name) if _kind(name, names) == LIST:
            return PLAIN
        case nodes.Test(name=test) if test in _OF_TYPES and _kind(node.node, names) in (PLAIN, CONTENT):
            return PLAIN
        case nodes.Add() | nodes.Concat():
            kinds = {_kind(each, names) for each in node.iter_child_nodes()}
            return PLAIN if kinds == {PLAIN} else CONTENT if kinds <= _WRITTEN else UNKNOWN
        case nodes.CondExpr() if _kind(node.test, names) == PLAIN and node.expr2 is not None:
            kinds = {_kind(each, names) for each in (node.expr1, node.expr2)}
            return kinds.pop() if len(kinds) == 1 else CONTENT if kinds <= _WRITTEN else UNKNOWN
    return PLAIN if all(_kind(each, names) == PLAIN for each in node.iter_child_nodes()) else UNKNOWN


def _trimmed(text: nodes.Node, names: dict[str, str]) -> str:
    kind = _kind(text, names)
    return kind if kind in _WRITTEN else UNKNOWN


def _part(node: nodes.Getattr | nodes.Getitem, names: dict[str, str]) -> str:
    """What a part of a list, message or loop holds."""
    kind = _kind(node.node, names)
    key = node.attr if isinstance(node, nodes.Getattr) else node.arg
    name = key if isinstance(key, str) else key.value if isinstance(key, nodes.Const) else None
    if not isinstance(key, str) and _kind(key, names) != PLAIN:
        return UNKNOWN
    if kind == LIST and isinstance(key, nodes.Slice):
        return LIST
    if kind == LIST and not isinstance(name, str):
        return MESSAGE
    if kind == MESSAGE and isinstance(name, str) and name not in dir(dict):
        return CONTENT if name == "content" else PLAIN
    if kind == LOOP:
        return PLAIN if name in _PLACES else UNKNOWN
    return PLAIN if kind == PLAIN else UNKNOWN
