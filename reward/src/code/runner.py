# The runner's side: runs the tests, which never meet the candidate's process. What the tests call of the candidate is
# asked of that process, and what it answers are plain values, compared here.
import builtins, fcntl, os, signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
task = json.loads(sys.stdin.buffer.read())


def tell(**what):
    os.write(1, (json.dumps(what) + "\n").encode())


class Died(BaseException):
    """The candidate's process is gone, or does not speak."""


def start():
    to_read, writer = os.pipe()
    reader, to_write = os.pipe()
    # Copies with numbers beyond those that they get there.
    copies = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (to_read, to_write)]
    actions = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3)]
    actions += [(os.POSIX_SPAWN_DUP2, copy, number) for copy, number in zip(copies, (3, 4))]
    command = [sys.executable, "-s", "-B", "-c", task["candidate"]]
    os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    # Its ends are its alone: when it dies, what it wrote ends.
    for one in (to_read, to_write, *copies):
        os.close(one)
    return Channel(reader, writer)


channel = start()


def ask(*request):
    """What the candidate's process answers; its exceptions are raised here."""
    try:
        channel.send(request)
        reply = channel.receive()
        if "raised" not in reply:
            return reply
        names, message = [str(name) for name in reply["raised"]], str(reply["message"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Died("the program ended, or sent no answer that can be read") from error
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            raise Raised.of(kind, names[0], message)
        if name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
            break
    raise Died(f"the program raised {names[0]}")


class Raised:
    """Exceptions of the candidate's: of the nearest built-in kind, under their own name."""

    @staticmethod
    def of(kind, name, message):
        try:
            error = kind(message)
        except TypeError:
            error = Exception(message)
        error.add_note(name) if hasattr(error, "add_note") and name != kind.__name__ else None
        return error


def value_of(reply):
    try:
        return unpack(reply["value"], remote)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, RecursionError, OverflowError) as error:
        raise Died("the program's answer cannot be read") from error


def remote(name, body):
    if name != "object" or type(body) is not int:
        raise ValueError(name)
    return Remote(body)


def hand_over(value):
    if type(value) is Remote:
        return {"object": object.__getattribute__(value, "number")}
    raise TypeError(f"a {type(value).__name__} cannot be handed to the program that is judged")


def in_place(mine, theirs):
    """Does to an argument what the candidate did to its copy."""
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, (list, bytearray)):
        mine[:] = theirs
    elif isinstance(mine, (dict, set)):
        mine.clear()
        mine.update(theirs)


class Remote:
    """An object of the candidate's. Its operators are not asked for: only its candidate would know their result."""

    def __init__(self, number):
        object.__setattr__(self, "number", number)

    def __call__(self, *arguments, **named):
        number = object.__getattribute__(self, "number")
        named = {name: pack(value, hand_over) for name, value in named.items()}
        packed = [pack(one, hand_over) for one in arguments]
        reply = ask("call", number, packed, {"dict": [list(pair) for pair in named.items()]})
        result = value_of(reply)
        try:
            for mine, theirs in zip(arguments, reply["arguments"]):
                if theirs is not None:
                    in_place(mine, unpack(theirs, remote))
        except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise Died("the program's answer cannot be read") from error
        return result

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return value_of(ask("get_attribute", object.__getattribute__(self, "number"), name))

    def __setattr__(self, name, value):
        ask("set_attribute", object.__getattribute__(self, "number"), name, pack(value, hand_over))

    def __getitem__(self, key):
        return value_of(ask("get_item", object.__getattribute__(self, "number"), pack(key, hand_over)))

    def __setitem__(self, key, value):
        number = object.__getattribute__(self, "number")
        ask("set_item", number, pack(key, hand_over), pack(value, hand_over))

    def __contains__(self, value):
        return bool(value_of(ask("contains", object.__getattribute__(self, "number"), pack(value, hand_over))))

    def __eq__(self, other):
        if type(other) is not Remote:
            return False
        numbers = [object.__getattribute__(one, "number") for one in (self, other)]
        return numbers[0] == numbers[1] or bool(value_of(ask("equals", *numbers)))

    def __hash__(self):
        return hash(object.__getattribute__(self, "number"))

    def __instancecheck__(self, value):
        number = object.__getattribute__(self, "number")
        return type(value) is Remote and bool(value_of(ask("is_instance", number, hand_over(value))))

    def __str__(self):
        return str(value_of(ask("text", object.__getattribute__(self, "number"), "str")))

    def __repr__(self):
        return str(value_of(ask("text", object.__getattribute__(self, "number"), "repr")))

    def __len__(self):
        return value_of(ask("size", object.__getattribute__(self, "number")))

    def __bool__(self):
        return bool(value_of(ask("truth", object.__getattribute__(self, "number"))))

    def __iter__(self):
        return iter(list(value_of(ask("values", object.__getattribute__(self, "number")))))


def names_in(code):
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            names |= names_in(constant)
    return names


def open_names(described):
    """The candidate's modules, which are our own, and its other names, as the tests see them."""
    modules, names = {}, {}
    for name, what in described.items():
        if isinstance(what, dict) and list(what) == ["module"]:
            try:
                modules[name] = __import__(name if is_ours(name) else str(what["module"]), fromlist=["*"])
            except ImportError:
                pass
        else:
            names[name] = unpack(what, remote)
    return modules, names


def is_ours(name):
    """Whether tests mean Python's own function or module by a name, and not what a candidate calls so."""
    return hasattr(builtins, name) or name in sys.stdlib_module_names


def run(code, space):
    """The verdict on one test, and why."""
    try:
        exec(code, space)
        return "passed", ""
    except AssertionError as error:
        return "failed", str(error)
    except Died as error:
        return "crashed", str(error)
    except BaseException as error:
        return "crashed", f"{type(error).__name__}: {error}"


def main():
    try:
        loaded = ask("load", task["sources"])
        if "syntax" in loaded:
            return tell(syntax=str(loaded["syntax"]))
        modules, names = open_names(loaded["names"])
    except Died as error:
        return tell(load=str(error))
    except Exception as error:
        return tell(load=f"{type(error).__name__}: {error}"[:500])
    plain = {name: value for name, value in names.items() if not is_ours(name)}
    space = dict(modules, **plain, __name__="tests")
    verdict, why = run(compile(task["setup"], "setup", "exec"), space)
    if verdict != "passed":
        return tell(load=f"{task['setup'].strip()[:100]}: {why}"[:500])
    for index, test in enumerate(task["tests"]):
        code = compile(test, f"test {index + 1}", "exec")
        used = names_in(code)
        # A task may ask for a function with a name of Python's, which is then all that its tests use of the candidate.
        meant = {task["entry_point"]} if task["entry_point"] else used & set(names)
        before = dict(space)
        if len(meant) == 1:
            space.update({name: names[name] for name in meant & set(names)})
        if task["call"]:
            code = compile(f"{test}\ncheck({task['entry_point']})", f"test {index + 1}", "exec")
        verdict, why = run(code, space)
        tell(test=index, verdict=verdict, message=why[:500])
        space = before


main()
