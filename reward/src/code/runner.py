# The runner's side: runs the tests, which never meet the candidate's process. What the tests call of the candidate is
# asked of that process, and what it answers are plain values, compared here.
import fcntl, os, signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
task = json.loads(sys.stdin.buffer.read())
# Verdicts have a file of their own: what tests print, such as an answer of the candidate's, is none.
verdicts = os.dup(1)
nowhere = os.open("/dev/null", os.O_RDWR)
for number in (0, 1):
    os.dup2(nowhere, number)


def tell(**what):
    os.write(verdicts, (json.dumps(what) + "\n").encode())


class Died(BaseException):
    """The candidate's process is gone, or does not speak. No test passes then, whatever it catches."""

    first = None

    def __init__(self, cause):
        super().__init__(cause)
        Died.first = Died.first or cause


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
# Until here nothing of the candidate's has run: what fails so far is no fault of its.
if channel.receive() != {"ready": True}:
    raise SystemExit("the candidate's process does not begin")
tell(started=True)
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, ImportError, RecursionError, OverflowError,
              ArithmeticError, MemoryError)


def ask(*request):
    """What the candidate's process answers; its exceptions are raised here."""
    if Died.first:
        raise Died(Died.first)
    try:
        channel.send(request)
        reply = exactly(channel.receive(), dict)
        if "raised" not in reply:
            return reply
        names = [exactly(name, str) for name in exactly(reply["raised"], list)] or ["Exception"]
        message = exactly(reply["message"], str)
    except (OSError, EOFError, *UNREADABLE) as error:
        raise Died("the program ended, or sent no answer that can be read") from error
    if {"StopIteration", "StopAsyncIteration"} & set(names):
        # Would end a loop of the tests, and their comparisons with it.
        raise RuntimeError(f"the program raised {names[0]}")
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            raise raised(kind, names[0], message)
        if name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
            break
    raise Died(f"the program raised {names[0]}")


def raised(kind, name, message):
    """An exception of the candidate's: of the nearest built-in kind, under its own name."""
    try:
        error = kind(message)
    except TypeError:
        error = Exception(message)
    error.add_note(name) if hasattr(error, "add_note") and name != kind.__name__ else None
    return error


def read(data, opaque):
    try:
        return unpack(data, opaque)
    except UNREADABLE as error:
        raise Died("the program's answer cannot be read") from error


def value_of(reply, *kinds, opaque=None):
    """The value in an answer; of one of these types, if there are any."""
    value = read(reply.get("value"), opaque or remote)
    if kinds and type(value) not in kinds:
        raise Died(f"the program's answer is a {type(value).__name__}, which is no {kinds[0].__name__}")
    return value


# No attribute of the candidate's is called so.
NUMBER, ITEMS = " number", " items"


def number_of(value):
    return object.__getattribute__(value, NUMBER)


def hand_over(value):
    if type(value) in (Remote, Instance):
        return {"object": number_of(value)}
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
    """An object of the candidate's. It has attributes and can be called. It never says what it equals, how long it is
    or what it contains: its items are asked for once, and are plain values from then on."""

    def __init__(self, number):
        object.__setattr__(self, NUMBER, number)
        object.__setattr__(self, ITEMS, None)

    def __call__(self, *arguments, **named):
        named = {name: pack(value, hand_over) for name, value in named.items()}
        packed = [pack(one, hand_over) for one in arguments]
        reply = ask("call", number_of(self), packed, {"dict": [list(pair) for pair in named.items()]})
        result = value_of(reply, opaque=results_of(self))
        if result is None or task["in_place"] == "always":
            changed = read(reply.get("arguments"), remote)
            if type(changed) is not list:
                raise Died("the program's answer cannot be read")
            for mine, theirs in zip(arguments, changed):
                if theirs is not None:
                    in_place(mine, theirs)
        return result

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return value_of(ask("get_attribute", number_of(self), name), opaque=results_of(self))

    def __setattr__(self, name, value):
        ask("set_attribute", number_of(self), name, pack(value, hand_over))

    def __eq__(self, other):
        if type(other) is Instance and type(self) is Remote:
            return NotImplemented
        return type(other) is Remote and number_of(self) == number_of(other)

    def __hash__(self):
        return hash(number_of(self))

    def __bool__(self):
        return True

    def __instancecheck__(self, value):
        return type(value) in (Remote, Instance) and value_of(ask("is_instance", number_of(self), hand_over(value)), bool)

    def __str__(self):
        return value_of(ask("text", number_of(self), "str"), str)

    def __repr__(self):
        return value_of(ask("text", number_of(self), "repr"), str)

    def __iter__(self):
        if object.__getattribute__(self, ITEMS) is None:
            object.__setattr__(self, ITEMS, value_of(ask("values", number_of(self)), list))
        return iter(object.__getattribute__(self, ITEMS))

    def __len__(self):
        return len(list(iter(self)))

    def __getitem__(self, key):
        return list(iter(self))[key]

    def __contains__(self, value):
        return value in list(iter(self))


class Instance(Remote):
    """A class that the tests name, an object that they made of it, or what came of such a one: the class is what is
    tested, and its operators are part of it."""

    def __eq__(self, other):
        if type(other) not in (Remote, Instance):
            return False
        return number_of(self) == number_of(other) or value_of(ask("equals", number_of(self), number_of(other)), bool)

    __hash__ = Remote.__hash__

    def __bool__(self):
        return value_of(ask("truth", number_of(self)), bool)

    def __iter__(self):
        return iter(value_of(ask("values", number_of(self)), list, opaque=instance))

    def __len__(self):
        return value_of(ask("size", number_of(self)), int)

    def __getitem__(self, key):
        return value_of(ask("get_item", number_of(self), pack(key, hand_over)), opaque=instance)

    def __setitem__(self, key, value):
        ask("set_item", number_of(self), pack(key, hand_over), pack(value, hand_over))

    def __contains__(self, value):
        return value_of(ask("contains", number_of(self), pack(value, hand_over)), bool)


def remote(name, body, kind=Remote):
    if name != "object":
        raise ValueError(name)
    return kind(exactly(body, int))


def instance(name, body):
    return remote(name, body, Instance)


def results_of(value):
    return instance if type(value) is Instance else remote


def reported(name, data):
    """What the candidate has by a name that it is asked for."""
    value = read(data, instance if is_class(name) else remote)
    if type(data) is dict and "builtin" in data:
        raise Died("the program's answer cannot be read")
    return value


def run(code, space):
    """The verdict on one test, and why."""
    verdict, why = "passed", ""
    try:
        code(space)
    except AssertionError as error:
        verdict, why = "failed", str(error)
    except BaseException as error:
        verdict, why = "crashed", f"{type(error).__name__}: {error}"
    # Who catches everything does not make a pass of the program's end.
    return ("crashed", Died.first) if Died.first else (verdict, why)


def execute(text, name):
    return lambda space: exec(compile(text, name, "exec"), space)


def uses_of(text):
    try:
        return Uses(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        # It fails when it is run.
        return Uses("")


def prompt_code():
    """The prompt's own code, which may end within a function; none if it is none."""
    for text in (task["prefix"] or "", f"{task['prefix']}\n    pass\n"):
        try:
            return text, Uses(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            pass
    return "", Uses("")


def check(test, entry, names):
    """A test that defines HumanEval's function `check`, which is called with the candidate's function."""
    def called(space):
        execute(test, "test")(space)
        if entry not in names:
            raise NameError(f"name '{entry}' is not defined")
        space["check"](names[entry])
    return called


def missing(name):
    """What stands for a function of the candidate's that is not there, so that Python's does not answer for it."""
    def absent(*arguments, **named):
        raise NameError(f"name '{name}' is not defined")
    return absent


def asked_behind(setup, meaning, names, space):
    """Puts right what a `from module import *` of the set-up has put in the place of what is asked for."""
    replaced = {name for name in meaning.asked - setup.bound if space.get(name) is not names.get(name)}
    # Beside others that are asked for, what the module brings is its own.
    if task["entry_point"] in replaced or replaced == meaning.asked:
        for name in replaced:
            space.pop(name, None)
            space.update({name: names[name]} if name in names else {})


def main():
    text, prompt = prompt_code()
    setup, tests = uses_of(task["setup"]), [uses_of(test) for test in task["tests"]]
    entry = task["entry_point"]
    try:
        meaning = Meaning(prompt, setup, tests, entry)
        loaded = ask("load", task["sources"], sorted(meaning.asked))
        if "syntax" in loaded:
            return tell(syntax=str(loaded["syntax"])[:500])
        names = exactly(loaded.get("names"), dict)
        names = {name: reported(name, names[name]) for name in meaning.asked if name in names}
        for name in meaning.asked - set(names):
            if hasattr(builtins, name):
                names[name] = missing(name)
    except Died as error:
        return tell(load=str(error))
    except Exception as error:
        return tell(load=f"{type(error).__name__}: {error}"[:500])
    space = {"__name__": "tests"}
    if text:
        # What it defines beside the function that is asked for may be used by the tests.
        verdict, why = run(execute(text, "prompt"), space)
    for name in meaning.asked - prompt.classes:
        space.pop(name, None)
    for name, value in meaning.given.items():
        space.setdefault(name, value)
    space.update(names)
    verdict, why = run(execute(task["setup"], "setup"), space)
    if verdict != "passed":
        return tell(load=f"{task['setup'].strip()[:100]}: {why}"[:500])
    asked_behind(setup, meaning, names, space)
    for index, test in enumerate(task["tests"]):
        before = dict(space)
        code = execute(test, f"test {index + 1}")
        if task["call"]:
            code = check(test, entry, names)
        verdict, why = run(code, space)
        tell(test=index, verdict=verdict, message=why[:500])
        space = before


main()
