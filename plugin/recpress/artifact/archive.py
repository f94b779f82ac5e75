"""What may stand in ``graph.pt2``: checked before it is read, by graph.py or by torch, which trusts it.

``torch.export.load`` unpickles sample inputs, pickled tensors and custom objects, and evaluates shape expressions
through sympy: a forged file runs code by each of these. It also looks functions up by dotted name, imports modules
that the description of the inputs names, and generates Python from guards and from the names of nodes and
arguments, with fewer checks of its own than one would like. So nothing passes that is not on the lists below; a
file written by :func:`recpress.export` needs no more.
"""

import ast
import json
import re
import zipfile
from pathlib import Path

from recpress.errors import ArtifactError

MAX_BYTES = 256 << 20
_EMPTY_ONLY = re.compile(r"data/sample_inputs/model\.pt")
_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(?:version|serialization_id)|models/model\.json"
    r"|data/weights/(?:weight_\d+|model_weights_config\.json)"
    r"|data/constants/(?:tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
)
_TARGETS = re.compile(
    r"torch\.ops\.(?:aten|recpress)\.(?!_*from_file)(?:_?[a-z][a-z0-9_]*|__(?:and|or|xor)__)\.[A-Za-z][A-Za-z0-9_]*"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(?:max|min|not|sum|float|int|ite)|math\.(?:ceil|floor|trunc)"
)
_VALUES = {
    *("as_none", "as_tensor", "as_tensors", "as_optional_tensor", "as_optional_tensors", "as_int", "as_ints"),
    *("as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_strings", "as_sym_int", "as_sym_ints"),
    *("as_sym_bool", "as_sym_bools", "as_sym_float", "as_sym_floats", "as_scalar_type", "as_memory_format"),
    *("as_layout", "as_device", "as_expr", "as_name", "as_int_lists", "as_float_lists", "as_nested_tensors"),
}
_IDENTIFIER = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*)?")
_PATH = re.compile(r"[A-Za-z0-9_.-]*")
_NAMES = {"name": _IDENTIFIER, "as_name": _IDENTIFIER, "fqn": _PATH, "parameter_name": _PATH, "buffer_name": _PATH}
_NAMES |= {"tensor_constant_name": _PATH, "user_input_name": _IDENTIFIER}
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_EXPRESSION_CALLS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Min", "Max", "Eq", "Ne", "Lt", "Le"),
    *("Gt", "Ge", "And", "Or", "Not", "FloorDiv", "CleanDiv", "CeilDiv", "PythonMod", "ModularIndexing"),
    *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Equality", "Unequality", "Identity"),
}
_SYMBOL = re.compile(r"[a-z]{1,3}\d+")


def check_archive(path: Path) -> dict:
    """Refuse ``path`` unless it is a program without pickles, code or anything off the lists; the program's JSON.

    Raises:
        ArtifactError: names the member, function or expression that is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _check_members(path, archive)
            graph = _json(path, archive, members["models/model.json"])
            for config in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
                if config in members:
                    _check_config(path, config, _json(path, archive, members[config]))
    except (zipfile.BadZipFile, OSError) as error:
        raise ArtifactError(f"{path} is not a readable archive ({error}); export the model again") from None
    _check_graph(path, graph)
    return graph


def _refuse(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path} {what}; it was not written by recpress; do not load it")


def _check_members(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """The full name of each member by its name below the archive's one root folder."""
    members: dict[str, str] = {}
    roots = set()
    for info in archive.infolist():
        root, _, name = info.filename.partition("/")
        roots.add(root)
        if not _MEMBERS.fullmatch(name):
            raise _refuse(path, f"holds a member that is not allowed, {info.filename!r}")
        if name in members:
            raise _refuse(path, f"holds {info.filename!r} twice")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _refuse(path, f"holds {info.filename!r} compressed")
        if _EMPTY_ONLY.fullmatch(name) and info.file_size:
            raise _refuse(path, "holds pickled sample inputs")
        members[name] = info.filename
    if len(roots) != 1 or "models/model.json" not in members:
        raise _refuse(path, "is not a torch.export program of one model")
    if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
        raise _refuse(path, f"unpacks to more than {MAX_BYTES >> 20} MiB, far more than a graph without weights")
    return members


def _json(path: Path, archive: zipfile.ZipFile, member: str) -> dict:
    try:
        return json.loads(archive.read(member))
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"holds {member!r}, which is not JSON ({error})") from None


def _check_config(path: Path, member: str, config: object) -> None:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise _refuse(path, f"holds {member!r} in an unknown form")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise _refuse(path, f"holds the tensor {name!r} as a pickle")
        if not re.fullmatch(r"(?:weight|tensor)_\d+", str(entry.get("path_name"))):
            raise _refuse(path, f"holds the tensor {name!r} under the path {entry.get('path_name')!r}")


def _check_graph(path: Path, graph: dict) -> None:
    if graph.get("guards_code"):
        raise _refuse(path, "holds guards, which torch compiles as Python")
    pending: list[object] = [graph]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        if isinstance(item, dict):
            if "target" in item and "inputs" in item and not _TARGETS.fullmatch(str(item["target"])):
                raise _refuse(path, f"calls {item['target']!r}, which is not an operator that recommenders use")
            for key, value in item.items():
                _check_entry(path, key, value)
            pending.extend(item.values())
    for symbol in graph.get("range_constraints") or {}:
        _check_expression(path, symbol)


def _check_entry(path: Path, key: str, value: object) -> None:
    if key.startswith("as_") and key not in _VALUES:
        raise _refuse(path, f"holds a value of kind {key!r}")
    if key in ("metadata", "treespec_namedtuple_fields") and value:
        raise _refuse(path, f"holds {key}")
    if key == "expr_str":
        _check_expression(path, value)
    if key in ("in_spec", "out_spec"):
        _check_tree(path, value)
    pattern = _NAMES.get(key)
    if pattern and isinstance(value, str) and not pattern.fullmatch(value):
        raise _refuse(path, f"holds the name {value!r}; names of letters, digits, '_', '-' and '.' are allowed")


def _check_tree(path: Path, text: object) -> None:
    """The form of inputs and outputs: nothing but tuples, lists, and dicts with strings as keys."""
    try:
        pending = [json.loads(str(text))[1]]
        while pending:
            node = pending.pop()
            context = json.loads(node["context"] or "null")
            keys = context is None or (isinstance(context, list) and all(isinstance(key, str) for key in context))
            if node["type"] not in _TREE_TYPES or not keys:
                raise _refuse(
                    path, f"holds inputs or outputs of type {node['type']!r}; tuples, lists and dicts are allowed"
                )
            pending.extend(node["children_spec"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise _refuse(path, "describes its inputs or outputs in an unknown form") from None


def _check_expression(path: Path, text: object) -> None:
    try:
        tree = ast.parse(str(text), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refuse(path, f"holds the shape expression {text!r}") from None
    for node in ast.walk(tree):
        if not _allowed_in_expression(node):
            raise _refuse(path, f"holds the shape expression {text!r}")


def _allowed_in_expression(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _EXPRESSION_CALLS
    if isinstance(node, ast.Name):
        return node.id in _EXPRESSION_CALLS or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float) or bool(_SYMBOL.fullmatch(str(node.value)))
    plain = (ast.Expression, ast.keyword, ast.Load, ast.BinOp, ast.UnaryOp, ast.USub, ast.Add, ast.Sub, ast.Mult)
    return isinstance(node, (*plain, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow))
