__version__ = "0.1.0"


def __getattr__(name):
    "`meco_nb.grade`, loaded when it is first asked for, so that importing the package stays quick."
    if name == 'grade':
        from meco_nb.grading import grade

        return grade
    raise AttributeError(f"module 'meco_nb' has no attribute {name!r}")
