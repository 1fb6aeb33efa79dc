"The attacks: by name in `ATTACKS`, and each class as an attribute."

from meco_nb.methods import ATTACKS


def __getattr__(name):
    "A class by its own name, e.g. `from meco_nb.attacks import DFME`."
    cls = ATTACKS.of_class(name) if name[:1].isupper() else None
    if cls is None:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return cls
