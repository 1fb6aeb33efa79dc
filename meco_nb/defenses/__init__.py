"The defenses, by name."
from meco_nb.defenses.meco import MeCo, MeCoLiteral, MeCoReleased
from meco_nb.oracle import Undefended

DEFENSES = dict(undefended=Undefended, meco=MeCo, meco_literal=MeCoLiteral, meco_released=MeCoReleased)
