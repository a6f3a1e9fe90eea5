# The candidate's side: runs the code that is tested, and calls its functions when the runner asks. The runner
# believes nothing of what happens here but that some process gave these answers.
import itertools, types

channel = Channel(3, 4)
objects = []


def keep(value):
    objects.append(value)
    return {"object": len(objects) - 1}


def known(name, body):
    return objects[body]


def describe(value):
    # What can be called is called here, an alias of a function of Python's too.
    return keep(value) if callable(value) else pack(value, keep)


def load(sources, wanted):
    first = None
    for source in sources:
        try:
            program = compile(source, "completion", "exec")
            break
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
            first = first or error
    else:
        return {"syntax": f"{type(first).__name__}: {first}"[:500]}
    module = types.ModuleType("completion")
    sys.modules["completion"] = module
    exec(program, module.__dict__)
    return {"names": {name: describe(module.__dict__[name]) for name in wanted if name in module.__dict__}}


def call(target, arguments, named):
    values = unpack(arguments, known)
    result = objects[target](*values, **unpack(named, known))
    # What was changed in place goes back.
    after = [pack(one, keep) if isinstance(one, (list, dict, set, bytearray)) else None for one in values]
    changed = [one if one != before else None for one, before in zip(after, arguments)]
    return {"value": pack(result, keep), "arguments": changed}


def get_attribute(target, name):
    return {"value": pack(getattr(objects[target], name), keep)}


def set_attribute(target, name, value):
    setattr(objects[target], name, unpack(value, known))
    return {"value": None}


def get_item(target, key):
    return {"value": pack(objects[target][unpack(key, known)], keep)}


def set_item(target, key, value):
    objects[target][unpack(key, known)] = unpack(value, known)
    return {"value": None}


def contains(target, value):
    return {"value": bool(unpack(value, known) in objects[target])}


def equals(target, other):
    return {"value": bool(objects[target] == objects[other])}


def is_instance(target, value):
    return {"value": isinstance(unpack(value, known), objects[target])}


def text(target, how):
    return {"value": {"str": str, "repr": repr}[how](objects[target])}


def size(target):
    return {"value": len(objects[target])}


def truth(target):
    return {"value": bool(objects[target])}


def values(target):
    return {"value": pack(list(itertools.islice(objects[target], LONGEST_ITERATOR)), keep)}


OPERATIONS = {
    one.__name__: one
    for one in (load, call, get_attribute, set_attribute, get_item, set_item, contains, equals, is_instance, text, size,
                truth, values)
}
channel.send({"ready": True})
while True:
    try:
        operation, *operands = channel.receive()
    except EOFError:
        break
    try:
        reply = OPERATIONS[operation](*operands)
    except BaseException as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        reply = {"raised": names, "message": str(error)[:2000]}
    channel.send(reply)
