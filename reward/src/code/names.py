# Which names in the tests mean the candidate's. This is told from the tests alone: what the candidate calls its
# functions has no say in it. Names that the tests, their set-up and the prompt's own code define are theirs; Python's
# names are Python's, unless nothing else can be meant.
import ast, importlib

# Names of modules as they are commonly imported.
ALIASES = {"np": "numpy", "pd": "pandas", "sp": "scipy", "plt": "matplotlib.pyplot"}
# What tests take from Python's library without an import of their own, as if the code had imported it for them.
LIBRARY = {
    "math": "",  # All of it.
    "typing": "",  # What begins with a capital.
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "itertools": "accumulate chain combinations combinations_with_replacement dropwhile groupby islice permutations "
                 "product starmap takewhile zip_longest",
    "functools": "partial reduce cmp_to_key",
    "fractions": "Fraction",
    "decimal": "Decimal",
    "datetime": "date datetime timedelta",
    "copy": "deepcopy",
}
# Functions of Python's that nobody asks for, and that decide what tests see.
NEVER_ASKED = set("""__import__ breakpoint callable compile delattr dir eval exec exit getattr globals hasattr help id input
isinstance issubclass locals object open print quit setattr super type vars""".split())


class Uncertain(Exception):
    """The tests do not tell what is asked for."""


class Uses(ast.NodeVisitor):
    """What a text reads, calls, takes attributes of, and defines itself; its last function."""

    def __init__(self, text):
        self.read, self.called, self.based, self.bound = set(), set(), set(), set()
        self.classes, self.last = set(), None
        tree = ast.parse(text)
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.last = node.name
        self.visit(tree)

    def visit_Name(self, node):
        (self.read if isinstance(node.ctx, ast.Load) else self.bound).add(node.id)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name):
            self.called.add(node.func.id)
            # A text that is run as Python.
            if node.func.id in ("eval", "exec") and node.args and isinstance(node.args[0], ast.Constant):
                try:
                    self.visit(ast.parse(node.args[0].value))
                except (SyntaxError, TypeError, ValueError):
                    pass
        self.generic_visit(node)

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name):
            self.based.add(node.value.id)
        self.generic_visit(node)

    def defines(self, node):
        self.bound.add(node.name)
        self.generic_visit(node)

    def visit_ClassDef(self, node):
        self.classes.add(node.name)
        self.defines(node)

    def visit_alias(self, node):
        self.bound.add(node.asname or node.name.partition(".")[0])

    def visit_arg(self, node):
        self.bound.add(node.arg)
        self.generic_visit(node)

    visit_FunctionDef = visit_AsyncFunctionDef = defines
    visit_ExceptHandler = visit_MatchAs = visit_MatchStar = defines


def library(name):
    """What Python's library has by a name; none if it has nothing."""
    for module, names in LIBRARY.items():
        if name in names.split() or module == "math" or module == "typing" and is_class(name):
            found = getattr(importlib.import_module(module), name, None)
            if found is not None and not name.startswith("_"):
                return found
    return None


def module(name):
    """The module that tests mean by a name; none if there is none."""
    name = ALIASES.get(name, name)
    try:
        return importlib.import_module(name)
    except Exception:  # Whatever a module does that is none of the tests' business.
        return None


def is_class(name):
    """Whether a name is that of a class, as everybody writes it."""
    return name.lstrip("_")[:1].isupper()


class Meaning:
    """What names mean that the tests use and do not define: `asked` of the candidate, or `given` by Python."""

    def __init__(self, prompt, setup, tests, entry_point):
        # A prompt's last function is the one to go on with.
        own = setup.bound | prompt.bound - prompt.classes - {entry_point or prompt.last}
        free = [uses.read - uses.bound - own for uses in (setup, *tests)]
        called = set().union(*[uses.called for uses in (setup, *tests)])
        based = set().union(*[uses.based for uses in (setup, *tests)])
        self.given, undefined = {}, set()
        for name in sorted(set().union(*free) - {entry_point}):
            found = module(name) if name in based and name not in called else None
            if found is None and not hasattr(builtins, name):
                found = library(name)
                # What only has attributes and a small name would be a module, but there is none.
                if found is None and (name in called or name not in based or is_class(name)):
                    undefined.add(name)
            if found is not None:
                self.given[name] = found
        # Objects of the prompt's own classes live where they can be handed over.
        self.asked = set(prompt.classes)
        if entry_point:
            self.asked |= {entry_point, *filter(is_class, undefined)}
            return
        self.asked |= undefined
        # A test of nothing else asks for a function that is called like one of the library's.
        for names, uses in zip(free[1:], tests):
            alike = {name for name in names & uses.called if name in self.given}
            if alike and not names & undefined:
                self.asked.add(self.only(alike))
        if not self.asked:
            alike = {name for uses in tests for name in uses.called - uses.bound - own if hasattr(builtins, name)}
            self.asked.add(self.only(alike - NEVER_ASKED))
        for name in self.asked:
            self.given.pop(name, None)

    @staticmethod
    def only(names):
        if len(names) != 1:
            found = ", ".join(sorted(names)) or "none"
            raise Uncertain(f"which function the tests ask for cannot be told (found: {found}); give `entry_point`")
        return names.pop()
