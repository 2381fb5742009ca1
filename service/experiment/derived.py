"""Guesses a solution's metadata by static analysis: function, algorithm, time and space.

It is a heuristic. Time and space are rough upper estimates, with n for the size of any input: they count loops, calls
that walk a container, sorting and what is collected. Not covered: what called helpers cost, early ends, and inputs of
bounded size.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
SORTS = frozenset({"sorted", "sort", "nlargest", "nsmallest", "heapify", "most_common"})
WALKS = frozenset({
    "sum", "any", "all", "set", "list", "tuple", "dict", "reversed", "map", "filter", "enumerate", "zip", "join",
    "split", "replace", "count", "index", "find", "Counter", "reverse", "copy", "deepcopy", "reduce", "findall", "sub",
    "search", "match", "upper", "lower", "strip", "extend", "update", "insert", "remove",
})  # fmt: skip
"""Calls that read or write a whole container or text."""
COLLECTS = frozenset({
    "list", "set", "dict", "tuple", "sorted", "split", "Counter", "append", "add", "extend", "insert", "appendleft",
    "update", "setdefault", "copy", "deepcopy", "findall", "heappush",
})  # fmt: skip
"""Calls whose result or receiver grows with the input."""
CACHES = frozenset({"cache", "lru_cache"})


@dataclass(frozen=True, order=True)
class Cost:
    """n ** power · (log n) ** logs"""

    power: int = 0
    logs: int = 0

    def times(self, other: Cost) -> Cost:
        return Cost(self.power + other.power, self.logs + other.logs)

    def text(self) -> str:
        power = {0: "", 1: "n"}.get(self.power, f"n^{self.power}")
        logs = {0: "", 1: "log n"}.get(self.logs, f"log^{self.logs} n")
        return f"O({' '.join(part for part in (power, logs) if part) or '1'})"


def derived_metadata(code: str, name: str | None) -> dict[str, str]:
    """Return what the code of a solution shows. Empty if it does not parse or defines no function.

    Args:
        name: of the function that solves the task. None: the last one at the top level
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # solutions have invalid escape sequences
            body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    functions = [node for node in body if isinstance(node, Function)]
    function = next((node for node in functions if node.name == name), functions[-1] if functions else None)
    if function is None:
        return {}
    return {
        "functionName": function.name,
        "algorithmType": _algorithm(function),
        "timeComplexity": _time(function),
        "spaceComplexity": _space(function),
    }


def _algorithm(function: Function) -> str:
    loops = [depth for node, depth in _by_depth(function) if isinstance(node, ast.For | ast.While)]
    nodes = list(ast.walk(function))
    if _own_calls(function):
        return "recursion"
    if max((cost.power for cost in loops), default=0) > 0 or _most(function).power > 1:
        return "nested-loop"
    if any(_called(node) in SORTS for node in nodes):
        return "sorting"
    if loops:
        return "single-loop"
    return "comprehension" if any(isinstance(node, Comprehension) for node in nodes) else "direct"


def _time(function: Function) -> str:
    cost = max((_own_cost(node).times(depth) for node, depth in _by_depth(function)), default=Cost())
    own = _own_calls(function)
    cached = any(name in CACHES for node in function.decorator_list for name in _names(node))
    if own > 1 and not cached:
        return "O(2^n)"
    return (cost.times(Cost(1)) if own else cost).text()


def _space(function: Function) -> str:
    """The largest thing that is collected. A recursion needs its stack."""
    found = [Cost(1)] if _own_calls(function) else [Cost()]
    for node, depth in _by_depth(function):
        grows = isinstance(node, ast.Call) and _called(node) in COLLECTS and bool(node.args)
        repeats = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, ast.List)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp):
            inner = any(isinstance(part, ast.ListComp | ast.BinOp) and _is_list(part) for part in _elements(node))
            found.append(Cost(len(node.generators) + inner))
        elif grows and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found.append(Cost(max(1, depth.power)))
        elif grows or repeats or isinstance(node, ast.Slice):
            found.append(Cost(1))
    return max(found).text()


def _by_depth(function: Function) -> Iterator[tuple[ast.AST, Cost]]:
    """Yield each node with the cost of the loops around it. A loop over something fixed is none."""
    left: list[tuple[ast.AST, Cost]] = [(statement, Cost()) for statement in function.body]
    while left:
        node, depth = left.pop()
        yield node, depth
        match node:
            case ast.For():
                left += [(node.iter, depth)]
                inside: list[ast.AST] = [*node.body, *node.orelse]
            case ast.While():
                inside = [node.test, *node.body, *node.orelse]
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                left += [(node.generators[0].iter, depth)]
                conditions = [test for generator in node.generators for test in generator.ifs]
                inside = [*_elements(node), *conditions, *(one.iter for one in node.generators[1:])]
            case _:
                left += [(child, depth) for child in ast.iter_child_nodes(node)]
                continue
        left += [(child, depth.times(_own_cost(node))) for child in inside]


def _own_cost(node: ast.AST) -> Cost:
    """What a node costs besides what is in it."""
    match node:
        case ast.For():
            return Cost(0 if _is_fixed(node.iter) else 1)
        case ast.While():
            return Cost(0, 1) if _divides(node) else Cost(1)
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return Cost(sum(not _is_fixed(generator.iter) for generator in node.generators))
        case ast.Call():
            name = _called(node)
            if name in SORTS:
                return Cost(1, 1)
            walks = name in WALKS or (name in ("min", "max") and len(node.args) == 1)
            return Cost(int(walks and not all(map(_is_fixed, node.args or [node.func]))))
        case ast.Slice():
            return Cost(1)
    return Cost()


def _most(function: Function) -> Cost:
    """The deepest nesting of loops and comprehensions, without calls."""
    loops = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    costs = (_own_cost(node).times(depth) for node, depth in _by_depth(function) if isinstance(node, loops))
    return max(costs, default=Cost())


def _is_fixed(node: ast.AST) -> bool:
    """Whether a value has the same size for every input: literals, and ranges of literals."""
    if isinstance(node, ast.Call) and _called(node) == "range":
        return all(isinstance(argument, ast.Constant) for argument in node.args)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return True
    return isinstance(node, ast.Constant)


def _divides(loop: ast.While) -> bool:
    """Whether a loop divides a number in each round."""
    parts = [part for statement in loop.body for part in ast.walk(statement)]
    return any(
        isinstance(part, ast.AugAssign | ast.BinOp) and isinstance(part.op, ast.FloorDiv | ast.RShift) for part in parts
    ) and not any(isinstance(part, ast.For | ast.While) for part in parts)


def _elements(node: Comprehension) -> list[ast.AST]:
    return [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]


def _is_list(node: ast.AST) -> bool:
    return isinstance(node, ast.ListComp) or (isinstance(node, ast.BinOp) and isinstance(node.left, ast.List))


def _own_calls(function: Function) -> int:
    """How often a function calls itself."""
    return sum(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function.name
        for node in ast.walk(function)
    )


def _called(node: ast.AST) -> str:
    """The name of the called function or method. Empty for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _names(node: ast.AST) -> list[str]:
    return [part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in ast.walk(node)]
