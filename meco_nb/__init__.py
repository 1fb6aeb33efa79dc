__version__ = "0.1.0"

HANDED_ON = {'grade': 'grading', 'save': 'saving', 'load': 'saving'}  # name -> module


def __getattr__(name):
    "`meco_nb.grade` and others, loaded when first asked for: importing the package stays quick."
    if name in HANDED_ON:
        from importlib import import_module

        return getattr(import_module(f'meco_nb.{HANDED_ON[name]}'), name)
    raise AttributeError(f"module 'meco_nb' has no attribute {name!r}")
