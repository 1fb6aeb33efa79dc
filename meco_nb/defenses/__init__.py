"The defenses, by name."
from meco_nb.defenses.meco import MeCo
from meco_nb.oracle import Undefended

DEFENSES = dict(undefended=Undefended, meco=MeCo)
